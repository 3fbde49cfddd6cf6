"""Runs the example clients and forwarders against a relay, and compares what it delivers.

    check.py RELAY UNPACKED     UNPACKED: where the daemons were unpacked
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

EXAMPLES = pathlib.Path('examples')
CLIENTS = {
    'bash': ['bash', 'send.sh'],
    'python3': ['python3', 'send.py'],
    'node': ['node', 'send.js'],
    'java': ['java', 'Send.java'],
    'go': ['go', 'run', 'send.go'],
}
PAYLOADS = ['{"a":1}', 'with  two spaces ', 'grüße', '!not a control frame', '\\n "quoted" \\']


def main(relay, unpacked):
    missing = []
    for language, command in CLIENTS.items():
        if shutil.which(language):
            client(relay, language, [command[0], *command[1:-1], str(EXAMPLES / 'clients' / command[-1])])
        else:
            missing.append(language)
    for name, run in (('rsyslog', rsyslog), ('syslog-ng', syslog_ng)):
        if (unpacked / f'{name}.done').exists():
            run(relay, unpacked / name)
        else:
            missing.append(name)
    # These have no package here; what their configurations hold was read in their sources.
    missing += ['vector', 'fluent-bit']
    print(f'senders: not run: {", ".join(missing)}')


def client(relay, language, command):
    with tempfile.TemporaryDirectory() as state:
        with Relay(relay, '--destination', f'directory:{state}', '--linger', '10ms') as running:
            host, port = running.address
            lines = ''.join(f'{payload}\n' for payload in PAYLOADS)
            subprocess.run([*command, host, str(port), 'clicks'], input=lines, text=True, check=True, timeout=60)
            # It has said that they are safe, so they are there now.
            assert delivered(state, 'clicks') == PAYLOADS, delivered(state, 'clicks')
            bad = subprocess.run([*command, host, str(port), 'no/name'], input='x\n', text=True, capture_output=True, timeout=60)
            assert bad.returncode != 0, f'{language}: a lost event should be told'
            assert '!lost 1 1' in bad.stderr, f'{language}: {bad.stderr}'
            assert running.terminate() == 0
    print(f'senders: {language} delivers, and says what is lost')


def delivered(state, stream):
    files = sorted(path for path in (pathlib.Path(state) / stream).rglob('*') if path.is_file())
    return ''.join(path.read_text() for path in files).splitlines()


def rsyslog(relay, root):
    library = next(root.glob('usr/lib/*/rsyslog'))
    with tempfile.TemporaryDirectory() as work, Relay(relay, '--destination', f'directory:{work}/out', '--linger', '10ms') as running:
        port = free_port()
        action = at(running, EXAMPLES / 'forwarders' / 'rsyslog.conf', 'port="15555"', 'port="{}"')
        configuration = pathlib.Path(work) / 'rsyslog.conf'
        configuration.write_text(
            f'global(workDirectory="{work}")\n'
            f'module(load="imtcp")\ninput(type="imtcp" port="{port}" address="127.0.0.1")\n{action}')
        command = [root / 'usr/sbin/rsyslogd', '-n', '-M', library, '-f', configuration, '-i', f'{work}/pid']
        forward(running, command, root, port, f'{work}/out', 'rsyslog', 'postfix')


def syslog_ng(relay, root):
    with tempfile.TemporaryDirectory() as work, Relay(relay, '--destination', f'directory:{work}/out', '--linger', '10ms') as running:
        port = free_port()
        destination = at(running, EXAMPLES / 'forwarders' / 'syslog-ng.conf', 'port(15555)', 'port({})')
        destination = destination.replace('reliable(yes)', f'reliable(yes) dir("{work}")')
        configuration = pathlib.Path(work) / 'syslog-ng.conf'
        configuration.write_text(
            f'@version: 3.38\nsource s {{ network(ip("127.0.0.1") port({port}) transport("tcp") keep-hostname(yes)); }};\n{destination}'
            'log { source(s); destination(d_standpipe); };\n')
        modules = next(root.glob('usr/lib/syslog-ng/3.*'))
        command = [root / 'usr/sbin/syslog-ng', '-F', '-f', configuration, '-R', f'{work}/persist', '-p', f'{work}/pid',
                   '-c', f'{work}/control', '--module-path', modules, '--no-caps']
        forward(running, command, root, port, f'{work}/out', 'syslog-ng', 'postfix_smtpd')


def at(running, example, wanted, replacement):
    """The example with the port of this relay; the rest as it is."""
    text = example.read_text()
    assert text.count(wanted) == 1, f'{example} should hold {wanted} once'
    return text.replace(wanted, replacement.format(running.address[1]))


def forward(running, command, root, port, out, name, mailer):
    """Gives the daemon messages as a host would, and finds them in the streams of their programs.

    mailer: the stream of postfix/smtpd, whose name has a slash.
    """
    libraries = [str(path) for path in (*root.glob('usr/lib/*-linux-gnu'), *root.glob('lib/*-linux-gnu'), root / 'usr/lib/syslog-ng')]
    environment = clean_environment(LD_LIBRARY_PATH=':'.join(libraries))
    daemon = subprocess.Popen([str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        connection = wait_until(f'{name} to listen', lambda: connect(daemon, port))
        with connection:
            for program, message in (('app', 'first "quoted"'), ('postfix/smtpd[12]', 'second'), ('app', 'third')):
                connection.sendall(f'<13>Nov 20 12:00:00 host1 {program}: {message}\n'.encode())
        wait_until(f'{name} to forward', lambda: len(delivered(out, 'app')) == 2 and len(delivered(out, mailer)) == 1)
        first = delivered(out, 'app')[0]
        assert json.loads(first)['message'] == 'first "quoted"' and json.loads(first)['host'] == 'host1', first
    finally:
        daemon.terminate()
        print(daemon.communicate(timeout=60)[1][-2000:] if sys.exc_info()[0] else '', end='')
    assert running.terminate() == 0
    print(f'senders: {name} delivers')


def connect(daemon, port):
    assert daemon.poll() is None, daemon.stderr.read()
    try:
        return socket.create_connection(('127.0.0.1', port))
    except ConnectionRefusedError:
        return None


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return listener.getsockname()[1]


if __name__ == '__main__':
    main(os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).absolute())
