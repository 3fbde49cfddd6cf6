"""A headless Chromium, driven over its debugging protocol (chromedevtools.github.io/devtools-protocol) through a pair
of pipes. Standard library only."""

import base64
import json
import os
import select
import subprocess
import tempfile
import time

DEADLINE_SECONDS = 60


class Browser:
    """Starts a browser; `with` ends it."""

    def __init__(self, binary):
        self._profile = tempfile.TemporaryDirectory(prefix='standpipe-page-', ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # What the browser itself would ask of the network is no part of the test.
        flags = ['--headless=new', '--remote-debugging-pipe', '--disable-gpu', '--no-first-run', '--hide-scrollbars',
                 '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-proxy-server',
                 '--disable-dev-shm-usage', f'--user-data-dir={self._profile.name}']
        if os.getuid() == 0:
            flags.append('--no-sandbox')
        # The protocol is spoken on descriptors 3 and 4.
        command = ['bash', '-c', f'exec "$@" 3<&{to_read} 4>&{to_write}', 'browser', binary, *flags, 'about:blank']
        self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, start_new_session=True)
        os.close(to_read)
        os.close(to_write)
        self._next, self._rest, self._answers = 0, b'', {}
        self._listeners = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call('Browser.close')
            self._process.wait(timeout=10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def call(self, method, session=None, **parameters):
        """Asks, and gives the answer."""
        self._next += 1
        number = self._next
        message = {'id': number, 'method': method, 'params': parameters}
        if session:
            message['sessionId'] = session
        os.write(self._to, json.dumps(message).encode() + b'\0')
        deadline = time.monotonic() + DEADLINE_SECONDS
        while number not in self._answers:
            assert time.monotonic() < deadline, f'no answer to {method}'
            self.hear(0.5)
        answer = self._answers.pop(number)
        assert 'error' not in answer, f'{method}: {answer["error"]}'
        return answer['result']

    def hear(self, seconds):
        """Takes what the browser has to say, for so long at most."""
        if not select.select([self._from], [], [], seconds)[0]:
            return
        read = os.read(self._from, 1 << 20)
        assert read, 'the browser has ended'
        *whole, self._rest = (self._rest + read).split(b'\0')
        for message in map(json.loads, whole):
            if 'id' in message:
                self._answers[message['id']] = message
            elif message.get('sessionId') in self._listeners:
                self._listeners[message['sessionId']](message['method'], message['params'])

    def open(self, url, **look):
        """A page in a window of its own."""
        return Page(self, url, **look)


class Page:
    """One page. What it asks of the network, and what it complains about, is kept."""

    def __init__(self, browser, url, **look):
        self._browser = browser
        # In a window of its own: what is hidden behind another tab asks nothing.
        target = browser.call('Target.createTarget', url='about:blank', newWindow=True)['targetId']
        self._session = browser.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self.requests, self.complaints = [], []
        browser._listeners[self._session] = self._hear
        for domain in ['Page', 'Runtime', 'Network', 'Log']:
            self.call(f'{domain}.enable')
        self.call('Emulation.setFocusEmulationEnabled', enabled=True)
        self.look(**look)
        self.call('Page.navigate', url=url)

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def look(self, width=1280, scheme='light'):
        """The width of the screen, and day or night."""
        self.width = width
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        features = [{'name': 'prefers-color-scheme', 'value': scheme}, {'name': 'prefers-reduced-motion', 'value': 'reduce'}]
        self.call('Emulation.setEmulatedMedia', features=features)

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, f'{script}: {answer["exceptionDetails"]}'
        return answer['result'].get('value')

    def until(self, what, script):
        """Waits until an expression gives something true, and gives that."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            value = self.run(script)
            if value:
                return value
            self._browser.hear(0.05)
        raise AssertionError(f'waited in vain for {what}; the page says:\n{self.run("document.body.innerText")}')

    def text(self, selector):
        return self.run(f'document.querySelector({json.dumps(selector)}).textContent')

    def picture(self, path, height=None):
        """The whole page, or as much of it from the top."""
        height = height or self.run('Math.ceil(document.documentElement.getBoundingClientRect().height)')
        clip = {'x': 0, 'y': 0, 'width': self.width, 'height': height, 'scale': 1}
        answer = self.call('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer['data']))

    def close(self):
        self.call('Page.close')

    def _hear(self, event, details):
        if event == 'Network.requestWillBeSent':
            self.requests.append(details['request']['url'])
        elif event == 'Runtime.exceptionThrown':
            self.complaints.append(str(details['exceptionDetails']))
        elif event == 'Runtime.consoleAPICalled':
            self.complaints.append(f'console: {details["args"]}')
        elif event == 'Log.entryAdded':
            # A policy that was broken is told here, too.
            self.complaints.append(f'{details["entry"]["source"]}: {details["entry"]["text"]}')
