"""Sends events through a relay into moto's Firehose and compares them with the objects that moto's S3 holds.

    check.py RELAY

Every byte of every event must be there once. moto shows compatibility and bytes, not limits or faults: it checks
neither sizes nor signatures, and puts the records of one call into one object. Order is promised inside of a
record only, so lines are compared as a multiset.
"""

import collections
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading

import boto3
from botocore.config import Config

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

BUCKET = 'events'
REGION = 'eu-central-1'
PAYLOAD_BYTES_MAX = 1_023_999
# Stream to its delivery streams: one of its own name, one for bytes that are no text, one spread over two.
DELIVERY_STREAMS = {'clicks': ['clicks'], 'blobs': ['blobs'], 'spread': ['spread-1', 'spread-2']}
# This one gets its delivery stream late.
MISSING = 'nowhere'

CONFIGURATION = """
destination = "firehose"
linger = "200ms"
park_probe = "200ms"
[streams.spread]
delivery_streams = ["spread-1", "spread-2"]
"""


def main(binary):
    seed = int(os.environ.get('SEED') or random.SystemRandom().getrandbits(32))
    print(f'moto: seed {seed} (SEED={seed} repeats it)', flush=True)
    environment = clean_environment(
        AWS_ACCESS_KEY_ID='test', AWS_SECRET_ACCESS_KEY='test', AWS_REGION=REGION, AWS_EC2_METADATA_DISABLED='true'
    )
    os.environ.clear()
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as scratch, Moto(scratch) as moto:
        moto.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={'LocationConstraint': REGION})
        for name in sum(DELIVERY_STREAMS.values(), []):
            moto.create(name)
        configuration = pathlib.Path(scratch, 'standpipe.toml')
        configuration.write_text(CONFIGURATION)
        arguments = ['--config', str(configuration), '--endpoint-url', moto.url]
        with Relay(binary, *arguments, environment=environment) as relay:
            events = compare_all(relay, moto, random.Random(seed))
    print(f'moto: {len(DELIVERY_STREAMS) + 1} streams, {events} events, byte for byte the same')


def compare_all(relay, moto, rng):
    sent = {'clicks': clicks(rng), 'blobs': blobs(rng), 'spread': clicks(rng)}
    count = sum(map(len, sent.values()))
    lost = [b'kept %d' % number for number in range(500)]

    # The stream without a delivery stream goes first: it must be in nobody's way.
    send(relay.address, {MISSING: lost}, connections=1, rng=rng)
    wait_until('the lane to be parked', lambda: relay.sum('standpipe_lane_state', delivery_stream=MISSING) == 2)
    send(relay.address, sent, connections=8, rng=rng)
    wait_until('all else to be delivered', lambda: relay.sum('standpipe_events_delivered_total') == count)
    expect('delivered to nowhere', relay.sum('standpipe_events_delivered_total', stream=MISSING), 0)
    expect('held for nowhere', relay.sum('standpipe_events_held', stream=MISSING), len(lost))
    expect('held in all', relay.sum('standpipe_events_held'), len(lost))

    moto.create(MISSING)
    sent[MISSING], count = lost, count + len(lost)
    wait_until('the parked lane to recover', lambda: relay.sum('standpipe_events_held') == 0)
    expect('received', relay.sum('standpipe_events_received_total'), count)
    expect('delivered', relay.sum('standpipe_events_delivered_total'), count)
    for family in 'events_dropped', 'frames_rejected', 'possible_duplicate_events':
        expect(family, relay.sum(f'standpipe_{family}_total'), 0)
    expect('the exit code after SIGTERM', relay.terminate(), 0)

    for stream, payloads in sent.items():
        compare(stream, payloads, moto.lines(DELIVERY_STREAMS.get(stream, [stream])))
    return count


def clicks(rng):
    """JSON, as most senders have it."""
    number = rng.randrange
    return [b'{"id":%d,"page":"/%x","text":"%s"}' % (n, number(2**32), b'x' * number(300)) for n in range(15_000)]


def blobs(rng):
    """Bytes that are no text: NUL, CR, broken UTF-8, all that a payload may hold; and the longest there are."""
    table = bytes.maketrans(b'\n', b'\r')
    sizes = [rng.randint(1, 2_000) for _ in range(2_000)]
    sizes += [rng.randint(100_000, PAYLOAD_BYTES_MAX) for _ in range(20)] + [1, 2, 5_119, 5_120] * 5
    sizes += [PAYLOAD_BYTES_MAX - less for less in (0, 0, 0, 1, 2, 3)]
    return [rng.randbytes(size).translate(table) for size in sizes] + [b' ', b'\r', b'\0', b'! ', b'a b  c ']


def send(address, events, connections, rng):
    """Deals the frames out to connections, which send at the same time in writes of any size."""
    frames = [b'%s %s\n' % (stream.encode(), payload) for stream, payloads in events.items() for payload in payloads]
    rng.shuffle(frames)
    failures = []

    def run(share, write_bytes):
        try:
            with socket.create_connection(address) as connection:
                for start in range(0, len(share), write_bytes):
                    connection.sendall(share[start : start + write_bytes])
        except OSError as error:
            failures.append(error)

    shares = [b''.join(frames[index::connections]) for index in range(connections)]
    threads = [threading.Thread(target=run, args=(share, rng.randint(500, 70_000))) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def compare(stream, payloads, lines):
    sent, arrived = collections.Counter(payloads), collections.Counter(lines)
    if sent != arrived:
        missing, extra = sent - arrived, arrived - sent
        examples = [bytes(line[:80]) for line in [*list(missing)[:3], *list(extra)[:3]]]
        raise AssertionError(f'{stream}: {missing.total()} are missing, {extra.total()} are too many: {examples}')
    print(f'moto: {stream}: {len(payloads)} events, {sum(map(len, payloads))} bytes of payload', flush=True)


def expect(what, actual, expected):
    assert actual == expected, f'{what}: {actual:g} instead of {expected}'


class Moto:
    """moto's server in a process of its own."""

    def __init__(self, scratch):
        self.log = pathlib.Path(scratch, 'moto.log')
        program = pathlib.Path(sys.executable).with_name('moto_server')
        with self.log.open('wb') as log:
            self.process = subprocess.Popen([program, '--host', '127.0.0.1', '--port', '0'], stdout=log, stderr=log)
        try:
            self.url = wait_until('moto to be ready', self._ready).group()
        except AssertionError:
            self.__exit__()
            raise
        options = {'endpoint_url': self.url, 'region_name': REGION, 'config': Config(proxies={})}
        self.s3 = boto3.client('s3', **options)
        self.firehose = boto3.client('firehose', **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def create(self, name):
        """A delivery stream that puts its records below its own name."""
        role, bucket = 'arn:aws:iam::123456789012:role/firehose', f'arn:aws:s3:::{BUCKET}'
        destination = {'RoleARN': role, 'BucketARN': bucket, 'Prefix': f'{name}/'}
        self.firehose.create_delivery_stream(DeliveryStreamName=name, ExtendedS3DestinationConfiguration=destination)

    def lines(self, delivery_streams):
        """Every line of every object of these delivery streams, in which each event must have its LF."""
        lines = []
        for name in delivery_streams:
            for page in self.s3.get_paginator('list_objects_v2').paginate(Bucket=BUCKET, Prefix=f'{name}/'):
                for entry in page.get('Contents', []):
                    body = self.s3.get_object(Bucket=BUCKET, Key=entry['Key'])['Body'].read()
                    assert body.endswith(b'\n'), f'{entry["Key"]} ends in the middle of a line'
                    lines += body[:-1].split(b'\n')
        return lines

    def _ready(self):
        text = self.log.read_text(errors='replace')
        if self.process.poll() is not None:
            raise AssertionError(f'moto ended at once:\n{text}')
        return re.search(r'http://127\.0\.0\.1:\d+', text)


if __name__ == '__main__':
    main(sys.argv[1])
