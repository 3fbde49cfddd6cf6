"""moto's server, an emulator of AWS, in a process of its own; events for a relay, and what must have become of them.

moto shows compatibility and bytes, not limits or faults: it checks neither sizes nor signatures, and puts the records
of one call into one object. It keeps regions and accounts apart, by what a request is signed for and with.
"""

import collections
import pathlib
import re
import socket
import subprocess
import sys
import threading

import boto3
from botocore.config import Config

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import wait_until  # noqa: E402 (the line above makes it importable)

REGION = 'eu-central-1'
# What moto takes every access key for that it has not given out itself.
ACCOUNT = '123456789012'
BUCKET = 'events'


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

    def __init__(self, scratch, *arguments, verify=None):
        self.log = pathlib.Path(scratch, 'moto.log')
        program = pathlib.Path(sys.executable).with_name('moto_server')
        command = [program, '--host', '127.0.0.1', '--port', '0', *arguments]
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self.url = wait_until('moto to be ready', self._ready).group()
        except AssertionError:
            self.__exit__()
            raise
        self.verify = verify
        self.home = self.place()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def client(self, service, region=REGION, **credentials):
        options = {'region_name': region, 'config': Config(proxies={}), 'verify': self.verify, **credentials}
        return boto3.client(service, endpoint_url=self.url, **options)

    def place(self, region=REGION, bucket=BUCKET, **credentials):
        return Place(self, region, bucket, credentials)

    def _ready(self):
        text = self.log.read_text(errors='replace')
        if self.process.poll() is not None:
            raise AssertionError(f'moto ended at once:\n{text}')
        return re.search(r'https?://127\.0\.0\.1:\d+', text)


class Place:
    """A region of an account, with a bucket that its delivery streams put their records into."""

    def __init__(self, moto, region, bucket, credentials):
        self.bucket = bucket
        self.s3 = moto.client('s3', region, **credentials)
        self.firehose = moto.client('firehose', region, **credentials)
        # us-east-1 is S3's default, and may not be named.
        where = {'LocationConstraint': region}
        options = {} if region == 'us-east-1' else {'CreateBucketConfiguration': where}
        self.s3.create_bucket(Bucket=bucket, **options)

    def create(self, name):
        """A delivery stream that puts its records below its own name."""
        role, bucket = f'arn:aws:iam::{ACCOUNT}:role/firehose', f'arn:aws:s3:::{self.bucket}'
        destination = {'RoleARN': role, 'BucketARN': bucket, 'Prefix': f'{name}/'}
        self.firehose.create_delivery_stream(DeliveryStreamName=name, ExtendedS3DestinationConfiguration=destination)

    def lines(self, delivery_streams):
        """Every line of every object of these delivery streams, in which each event must have its LF."""
        lines = []
        for name in delivery_streams:
            for page in self.s3.get_paginator('list_objects_v2').paginate(Bucket=self.bucket, Prefix=f'{name}/'):
                for entry in page.get('Contents', []):
                    body = self.s3.get_object(Bucket=self.bucket, Key=entry['Key'])['Body'].read()
                    assert body.endswith(b'\n'), f'{entry["Key"]} ends in the middle of a line'
                    lines += body[:-1].split(b'\n')
        return lines
