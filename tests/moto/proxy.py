"""Sends events to Firehose through a forward proxy, over TLS, and looks at what the proxy has logged.

    proxy.py RELAY TINYPROXY

Firehose is moto behind TLS, with a certificate of an authority that is made here and trusted by SSL_CERT_FILE alone.
What HTTPS_PROXY names must see one CONNECT a connection and carry every event; what NO_PROXY excepts it must not see.
"""

import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile

from emulator import REGION, Moto, compare, expect, send

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

USER, PASSWORD = 'relay', 'secret'


def main(binary, tinyproxy):
    environment = clean_environment(
        AWS_ACCESS_KEY_ID='test', AWS_SECRET_ACCESS_KEY='test', AWS_REGION=REGION, AWS_EC2_METADATA_DISABLED='true'
    )
    os.environ.clear()
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as scratch:
        authority, certificate, key = make_certificates(scratch)
        arguments = ['--ssl', '--ssl-cert', certificate, '--ssl-key', key]
        with Moto(scratch, *arguments, verify=authority) as moto, Proxy(tinyproxy, scratch) as proxy:
            trusting = {**environment, 'SSL_CERT_FILE': authority}
            proxied = {**trusting, 'HTTPS_PROXY': f'http://{USER}:{PASSWORD}@127.0.0.1:{proxy.port}'}
            wrong = {**trusting, 'HTTPS_PROXY': f'http://{USER}:wrong@127.0.0.1:{proxy.port}'}
            relay_one(binary, moto, 'proxied', proxied)
            connects = proxy.connects()
            assert connects > 0, f'the proxy has seen no CONNECT:\n{proxy.log.read_text()}'
            relay_one(binary, moto, 'direct', {**proxied, 'NO_PROXY': '127.0.0.1'})
            expect('CONNECTs where NO_PROXY excepts the endpoint', proxy.connects() - connects, 0)
            nothing_is_lost_without(binary, moto, 'refused', wrong, proxied)
            nothing_is_lost_without(binary, moto, 'untrusted', environment, trusting)
    print('proxy: events went through CONNECT with a password, past it where NO_PROXY says so, and waited where they could not')


def relay_one(binary, moto, stream, environment):
    """Every event arrives."""
    moto.home.create(stream)
    with start(binary, moto, environment) as relay:
        payloads = [b'%d' % number for number in range(1_000)]
        send(relay.address, {stream: payloads}, connections=1, rng=random.Random(0))
        wait_until('the events to be delivered', lambda: relay.sum('standpipe_events_delivered_total') == len(payloads))
        expect('duplicates', relay.sum('standpipe_possible_duplicate_events_total'), 0)
        expect('the exit code after SIGTERM', relay.terminate(), 0)
    compare(stream, payloads, moto.home.lines([stream]))


def nothing_is_lost_without(binary, moto, stream, environment, mended):
    """What cannot get through is refused for certain, and kept; a relay whose environment is mended delivers."""
    moto.home.create(stream)
    with start(binary, moto, environment) as relay:
        send(relay.address, {stream: [b'kept']}, connections=1, rng=random.Random(0))
        wait_until('a call to fail', lambda: any('calls fail' in line for line in relay.log))
        expect('held', relay.sum('standpipe_events_held'), 1)
        expect('duplicates', relay.sum('standpipe_possible_duplicate_events_total'), 0)
        said = next(line for line in relay.log if 'calls fail' in line)
        assert 'nothing was sent' in said, said
    compare(stream, [], moto.home.lines([stream]))
    with start(binary, moto, mended) as relay:
        send(relay.address, {stream: [b'sent']}, connections=1, rng=random.Random(0))
        wait_until('it to be delivered', lambda: relay.sum('standpipe_events_delivered_total') == 1)


def start(binary, moto, environment):
    arguments = ['--destination', 'firehose', '--linger', '50ms', '--drain-deadline', '1s']
    return Relay(binary, *arguments, '--endpoint-url', moto.url, environment=environment)


def make_certificates(scratch):
    """An authority, and a certificate of 127.0.0.1 with its key."""
    path = lambda name: str(pathlib.Path(scratch, name))  # noqa: E731 (short, and only here)
    run = lambda *command: subprocess.run(['openssl', *command], check=True, capture_output=True)  # noqa: E731
    new_key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
    authority = ['-x509', '-days', '2', '-subj', '/CN=a test', '-addext', 'keyUsage=critical,keyCertSign']
    run('req', *new_key, *authority, '-keyout', path('ca.key'), '-out', path('ca.pem'))
    run('req', *new_key, '-subj', '/CN=127.0.0.1', '-keyout', path('tls.key'), '-out', path('tls.csr'))
    pathlib.Path(scratch, 'san').write_text('subjectAltName=IP:127.0.0.1\n')
    signing = ['-CA', path('ca.pem'), '-CAkey', path('ca.key'), '-CAcreateserial', '-extfile', path('san')]
    run('x509', '-req', '-in', path('tls.csr'), '-days', '2', *signing, '-out', path('tls.pem'))
    return path('ca.pem'), path('tls.pem'), path('tls.key')


class Proxy:
    """tinyproxy, which asks for a password."""

    def __init__(self, program, scratch):
        # It takes no port 0: one that was free a moment ago.
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self.log = pathlib.Path(scratch, 'tinyproxy.log')
        settings = pathlib.Path(scratch, 'tinyproxy.conf')
        settings.write_text(
            f'Port {self.port}\nListen 127.0.0.1\nTimeout 60\nLogFile "{self.log}"\nLogLevel Connect\n'
            f'MaxClients 100\nBasicAuth {USER} {PASSWORD}\n'
        )
        self.process = subprocess.Popen([program, '-d', '-c', settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until('tinyproxy to listen', self._listens)
        except AssertionError:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def connects(self):
        """How many tunnels it was asked for and made."""
        return self.log.read_text(errors='replace').count('Established connection to host')

    def _listens(self):
        assert self.process.poll() is None, 'tinyproxy ended at once'
        with socket.socket() as probe:
            return probe.connect_ex(('127.0.0.1', self.port)) == 0


if __name__ == '__main__':
    main(*sys.argv[1:])
