"""A relay under test: a process on ports of its own, its metrics, and its orderly end. Standard library only."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

# Long enough for a loaded machine; nothing waits this long unless something is wrong.
DEADLINE_SECONDS = 60

_SAMPLE = re.compile(r'^(\w+)(?:\{(.*)\})? (\S+)$')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_READY = re.compile(r'ready listen=(\S+) admin=(\S+)')


def clean_environment(**more):
    """This environment without proxies and AWS settings, so that no test leaves the host."""
    foreign = re.compile(r'(AWS_|STANDPIPE_).*|(https?|all|no)_proxy', re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
    return {**kept, 'AWS_CONFIG_FILE': '/dev/null', 'AWS_SHARED_CREDENTIALS_FILE': '/dev/null', **more}


def wait_until(what, condition):
    """Polls until the condition gives something true, and gives that."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f'waited {DEADLINE_SECONDS} s in vain for {what}')


class Relay:
    """Starts a relay; `with` ends it."""

    def __init__(self, binary, *arguments, environment=None):
        command = [binary, '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', *arguments]
        environment = environment or clean_environment()
        self.log = []
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        ready = wait_until('the relay to be ready', self._ready)
        self.address, self.admin = (_address(text) for text in ready.groups())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if kind:
            print('--- the end of the log of the relay:', *self.log[-40:], sep='\n')

    def metrics(self):
        """What /metrics shows: (name, labels as a sorted tuple) -> value."""
        samples = {}
        for line in self.get('/metrics').splitlines():
            if match := _SAMPLE.match(line):
                name, labels, value = match.groups()
                samples[name, tuple(sorted(_LABEL.findall(labels or '')))] = float(value)
        return samples

    def sum(self, name, **labels):
        """The sum of a family over all samples that have these labels, now."""
        wanted = set(labels.items())
        return sum(value for (key, have), value in self.metrics().items() if key == name and wanted <= set(have))

    def get(self, path):
        """The body of an admin page."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open('http://{}:{}{}'.format(*self.admin, path), timeout=DEADLINE_SECONDS) as answer:
            return answer.read().decode()

    def terminate(self):
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def _ready(self):
        if self.process.poll() is not None:
            raise AssertionError('the relay ended at once:\n' + '\n'.join(self.log))
        return next(filter(None, map(_READY.search, list(self.log))), None)

    def _read_log(self):
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line)['fields']['message'])
            except (ValueError, KeyError):
                self.log.append(line.rstrip('\n'))


def _address(text):
    host, _, port = text.rpartition(':')
    return host, int(port)
