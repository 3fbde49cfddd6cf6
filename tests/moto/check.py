"""Sends events through a relay into moto's Firehose and compares them with the objects that moto's S3 holds.

    check.py RELAY

Every byte of every event must be there once. Order is promised inside of a record only, so lines are compared as a
multiset.
"""

import os
import pathlib
import random
import sys
import tempfile

from emulator import REGION, Moto, compare, expect, send

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

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
        for name in sum(DELIVERY_STREAMS.values(), []):
            moto.home.create(name)
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

    moto.home.create(MISSING)
    sent[MISSING], count = lost, count + len(lost)
    wait_until('the parked lane to recover', lambda: relay.sum('standpipe_events_held') == 0)
    expect('received', relay.sum('standpipe_events_received_total'), count)
    expect('delivered', relay.sum('standpipe_events_delivered_total'), count)
    for family in 'events_dropped', 'frames_rejected', 'possible_duplicate_events':
        expect(family, relay.sum(f'standpipe_{family}_total'), 0)
    expect('the exit code after SIGTERM', relay.terminate(), 0)

    for stream, payloads in sent.items():
        compare(stream, payloads, moto.home.lines(DELIVERY_STREAMS.get(stream, [stream])))
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


if __name__ == '__main__':
    main(sys.argv[1])
