"""Holds the examples in deploy/ against what they are for: the schemas of Kubernetes and Compose, AWS's own as moto and
botocore have them, and the relay, whose settings they use.

    check.py RELAY
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import boto3
import kubernetes_validate
import moto
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import clean_environment  # noqa: E402 (the line above makes it importable)

DEPLOY = pathlib.Path('deploy')
REGION = 'eu-central-1'


def main(relay):
    os.environ.update(clean_environment(AWS_ACCESS_KEY_ID='test', AWS_SECRET_ACCESS_KEY='test'))
    kubernetes(relay)
    compose()
    aws(relay)
    settings(relay, (DEPLOY / 'agent.toml').read_text())
    commands(relay)
    print('deploy: the examples are right')


def kubernetes(relay):
    """Every object is one that Kubernetes knows, its configuration one that the relay takes, its times long enough."""
    objects = list(yaml.safe_load_all((DEPLOY / 'kubernetes' / 'standpipe.yaml').read_text()))
    for each in objects:
        kubernetes_validate.validate(each, '1.31', strict=True)
    by_kind = {each['kind']: each for each in objects}
    text = by_kind['ConfigMap']['data']['standpipe.toml']
    settings(relay, text)
    grace = by_kind['StatefulSet']['spec']['template']['spec']['terminationGracePeriodSeconds']
    assert grace > seconds(text, 'pre_drain_delay') + seconds(text, 'drain_deadline')


def seconds(text, key):
    line = next(line for line in text.splitlines() if line.startswith(key))
    return int(line.split('"')[1].removesuffix('s'))


def compose():
    file = DEPLOY / 'compose.yaml'
    command = [sys.executable, '-m', 'check_jsonschema', '--builtin-schema', 'vendor.compose-spec', file]
    subprocess.run(command, check=True)
    for service in yaml.safe_load(file.read_text())['services'].values():
        for volume in service.get('volumes', []):
            source = volume.split(':')[0]
            assert not source.startswith('.') or (DEPLOY / source).exists(), f'{file}: there is no {source}'


@moto.mock_aws
def aws(relay):
    """ECS takes the task, IAM the policies, and the relay the task's environment."""
    task = json.loads((DEPLOY / 'ecs' / 'task-definition.json').read_text())
    answer = boto3.client('ecs', region_name=REGION).register_task_definition(**task)
    assert answer['taskDefinition']['revision'] == 1
    environment = {each['name']: each['value'] for each in task['containerDefinitions'][0]['environment']}
    run(relay, 'check', **environment)
    policy = (DEPLOY / 'iam-policy.json').read_text()
    iam = boto3.client('iam', region_name=REGION)
    iam.create_policy(PolicyName='standpipe', PolicyDocument=policy)
    trust = (DEPLOY / 'iam-trust-policy.json').read_text()
    iam.create_role(RoleName='standpipe-delivery', AssumeRolePolicyDocument=trust)


def settings(relay, text):
    with tempfile.NamedTemporaryFile('w', suffix='.toml') as file:
        file.write(text)
        file.flush()
        run(relay, 'check', file.name)


def commands(relay):
    """What packages install beside the binary: completions that their shells parse, a page without warnings."""
    for shell, parse in {'bash': ['bash', '-n'], 'zsh': None, 'fish': None}.items():
        script = run(relay, 'completions', shell)
        assert 'pre-drain-delay' in script, shell
        if parse:
            subprocess.run(parse, input=script, check=True, text=True)
    page = run(relay, 'man')
    checked = subprocess.run(['groff', '-man', '-Tutf8', '-ww', '-z'], input=page, capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr


def run(relay, *arguments, **environment):
    done = subprocess.run([relay, *arguments], env=clean_environment(**environment), capture_output=True, text=True)
    assert done.returncode == 0, f'{arguments} {environment}: {done.stderr}'
    return done.stdout


if __name__ == '__main__':
    main(os.path.abspath(sys.argv[1]))
