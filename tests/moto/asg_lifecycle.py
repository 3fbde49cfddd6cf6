"""Terminates an instance of an Auto Scaling group and looks on as its relay is drained by `standpipe asg-lifecycle`.

    asg_lifecycle.py RELAY

moto is Auto Scaling: the group, its instance and its hook. It knows no heartbeats and no completing of lifecycle
actions; those two are played here, and hold what they are asked against moto's own hooks. The instance's metadata
(IMDSv2) are a stub.
"""

import http.server
import socket
import subprocess
import sys
import pathlib
import threading

import boto3
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import EmptyResult
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

REGION = 'eu-central-1'
GROUP, HOOK = 'relays', 'standpipe-drain'
CREDENTIALS = {'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test', 'AWS_REGION': REGION}

beats, completions = [], []


def note(action):
    """An action of Auto Scaling that moto does not have: refused unless it names a hook of the group."""

    def act(self):
        group, name, instance = (
            self._get_param(key) for key in ('AutoScalingGroupName', 'LifecycleHookName', 'InstanceId')
        )
        hooks = [hook.name for hook in self.autoscaling_backend.describe_lifecycle_hooks(group, None)]
        assert name in hooks, f'{name} is none of {hooks}'
        action.append((instance, self._get_param('LifecycleActionResult')))
        return EmptyResult()

    return act


AutoScalingResponse.record_lifecycle_action_heartbeat = note(beats)
AutoScalingResponse.complete_lifecycle_action = note(completions)


class Metadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2: nothing without a token."""

    pages = {'/latest/meta-data/placement/region': REGION}

    def do_PUT(self):
        assert self.path == '/latest/api/token' and self.headers['x-aws-ec2-metadata-token-ttl-seconds']
        self.answer(200, 'token')

    def do_GET(self):
        if self.headers['x-aws-ec2-metadata-token'] != 'token':
            self.answer(401, '')
        else:
            page = self.pages.get(self.path)
            self.answer(200 if page else 404, page or '')

    def answer(self, status, body):
        self.send_response(status)
        self.send_header('content-length', str(len(body)))
        self.send_header('x-aws-ec2-metadata-token-ttl-seconds', '21600')
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def main(binary):
    moto = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    moto.start()
    url = 'http://{}:{}'.format(*moto.get_host_and_port())
    metadata = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    Metadata.pages['/latest/meta-data/instance-id'] = make_group(url)
    environment = clean_environment(
        **CREDENTIALS,
        AWS_ENDPOINT_URL=url,
        AWS_EC2_METADATA_SERVICE_ENDPOINT='http://{}:{}'.format(*metadata.server_address),
    )
    for arguments in ([], ['--group', GROUP]):
        terminate_one(binary, environment, arguments)
    no_relay_is_no_reason_to_wait(binary, environment)
    moto.stop()
    print('asg-lifecycle: three instances were terminated, and each relay was drained first')


def make_group(url):
    settings = {'endpoint_url': url, 'region_name': REGION}
    keys = {'aws_access_key_id': 'test', 'aws_secret_access_key': 'test'}
    ec2, scaling = (boto3.client(name, **settings, **keys) for name in ('ec2', 'autoscaling'))
    image = ec2.describe_images()['Images'][0]['ImageId']
    scaling.create_launch_configuration(LaunchConfigurationName='relay', ImageId=image, InstanceType='t2.micro')
    scaling.create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        LaunchConfigurationName='relay',
        MinSize=1,
        MaxSize=1,
        AvailabilityZones=[REGION + 'a'],
    )
    scaling.put_lifecycle_hook(
        LifecycleHookName=HOOK,
        AutoScalingGroupName=GROUP,
        LifecycleTransition='autoscaling:EC2_INSTANCE_TERMINATING',
    )
    return scaling.describe_auto_scaling_instances()['AutoScalingInstances'][0]['InstanceId']


def start(binary, environment, admin, *arguments):
    command = [binary, 'asg-lifecycle', '--hook', HOOK, '--admin', '{}:{}'.format(*admin)]
    return subprocess.Popen([*command, '--poll', '100ms', '--heartbeat', '100ms', *arguments], env=environment)


def terminate_one(binary, environment, arguments):
    beats.clear(), completions.clear()
    Metadata.pages['/latest/meta-data/autoscaling/target-lifecycle-state'] = 'InService'
    instance = Metadata.pages['/latest/meta-data/instance-id']
    with Relay(binary, '--destination', 'null', '--drain-deadline', '1h') as relay:
        # Half a frame holds the drain up.
        half = socket.create_connection(relay.address)
        half.sendall(b'clicks ha')
        wait_until('it to be read', lambda: relay.sum('standpipe_received_bytes_total') == 9)
        helper = start(binary, environment, relay.admin, *arguments)
        try:
            assert 'ready' in relay.get('/readyz') and not beats
            Metadata.pages['/latest/meta-data/autoscaling/target-lifecycle-state'] = 'Terminated'
            wait_until('heartbeats while the relay drains', lambda: len(beats) >= 3)
            wait_until('the relay to drain', lambda: any('asked to drain' in line for line in relay.log))
            assert not completions and helper.poll() is None
            half.sendall(b'lf\n')
            half.close()
            assert relay.process.wait(timeout=60) == 0
            assert helper.wait(timeout=60) == 0
        finally:
            helper.kill()
            helper.wait()
    assert completions == [(instance, 'CONTINUE')], completions
    assert set(beats) == {(instance, None)}, beats


def no_relay_is_no_reason_to_wait(binary, environment):
    completions.clear()
    Metadata.pages['/latest/meta-data/autoscaling/target-lifecycle-state'] = 'Terminated'
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        assert start(binary, environment, taken.getsockname()).wait(timeout=60) == 0
    assert len(completions) == 1


if __name__ == '__main__':
    main(*sys.argv[1:])
