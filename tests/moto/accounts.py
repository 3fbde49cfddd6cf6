"""Sends events through one relay into Firehose of two regions and two accounts, and looks where they have come.

    accounts.py RELAY

Every delivery stream is there in every place under the same name, so that a call that was signed for the wrong region
or by the wrong identity would find one and be seen. The other account's role is assumed with moto's STS, which
checks no policies; that a role is refused is tested in src/destination/firehose/tests/targets.rs.
"""

import os
import pathlib
import random
import sys
import tempfile

from emulator import ACCOUNT, REGION, Moto, compare, expect, send

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

OTHER_REGION = 'us-east-1'
OTHER_ACCOUNT = '210987654321'
ROLE = f'arn:aws:iam::{OTHER_ACCOUNT}:role/standpipe-delivery'

CONFIGURATION = f"""
destination = "firehose"
linger = "200ms"
[delivery_streams."us-{{stream}}"]
region = "{OTHER_REGION}"
[delivery_streams."theirs-{{stream}}"]
role_arn = "{ROLE}"
external_id = "standpipe-of-example"
[delivery_streams.theirs-us]
region = "{OTHER_REGION}"
role_arn = "{ROLE}"
"""

# Where the events of a stream belong.
PLACES = {
    'clicks': (ACCOUNT, REGION),
    'us-clicks': (ACCOUNT, OTHER_REGION),
    'theirs-clicks': (OTHER_ACCOUNT, REGION),
    'theirs-us': (OTHER_ACCOUNT, OTHER_REGION),
}


def main(binary):
    seed = int(os.environ.get('SEED') or random.SystemRandom().getrandbits(32))
    print(f'accounts: seed {seed} (SEED={seed} repeats it)', flush=True)
    environment = clean_environment(
        AWS_ACCESS_KEY_ID='test', AWS_SECRET_ACCESS_KEY='test', AWS_REGION=REGION, AWS_EC2_METADATA_DISABLED='true'
    )
    os.environ.clear()
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as scratch, Moto(scratch) as moto:
        places = make_places(moto)
        configuration = pathlib.Path(scratch, 'standpipe.toml')
        configuration.write_text(CONFIGURATION)
        environment['AWS_ENDPOINT_URL'] = moto.url
        with Relay(binary, '--config', str(configuration), environment=environment) as relay:
            relay_all(relay, places, random.Random(seed))


def make_places(moto):
    """Both regions of both accounts, with all delivery streams in each."""
    identity = moto.client('sts').assume_role(RoleArn=ROLE, RoleSessionName='test')['Credentials']
    theirs = {
        'aws_access_key_id': identity['AccessKeyId'],
        'aws_secret_access_key': identity['SecretAccessKey'],
        'aws_session_token': identity['SessionToken'],
    }
    places = {}
    for account, credentials in (ACCOUNT, {}), (OTHER_ACCOUNT, theirs):
        for region in REGION, OTHER_REGION:
            place = moto.place(region, f'events-{account}-{region}', **credentials)
            assert moto.client('sts', **credentials).get_caller_identity()['Account'] == account
            for name in PLACES:
                place.create(name)
            places[account, region] = place
    return places


def relay_all(relay, places, rng):
    sent = {stream: [b'%s %d %s' % (stream.encode(), n, rng.randbytes(40).hex().encode()) for n in range(5_000)] for stream in PLACES}
    count = sum(map(len, sent.values()))
    send(relay.address, sent, connections=4, rng=rng)
    wait_until('all events to be delivered', lambda: relay.sum('standpipe_events_delivered_total') == count)
    for family in 'events_dropped', 'frames_rejected', 'possible_duplicate_events':
        expect(family, relay.sum(f'standpipe_{family}_total'), 0)
    # moto's assumed credentials last an hour; our own do not expire.
    left = relay.sum('standpipe_credentials_expiry_timestamp_seconds')
    assert left > 0, 'the expiry of the credentials that were assumed is not known'
    expect('the exit code after SIGTERM', relay.terminate(), 0)
    for stream, payloads in sent.items():
        for where, place in places.items():
            compare(stream, payloads if where == PLACES[stream] else [], place.lines([stream]))
    print(f'accounts: {count} events in two regions of two accounts, each where it belongs, byte for byte the same')


if __name__ == '__main__':
    main(sys.argv[1])
