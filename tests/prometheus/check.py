"""Runs every query in dashboards/ against a Prometheus that scrapes two relays in trouble.

    check.py RELAY LOADGEN

One relay has a spool and a delivery stream that is throttled; the other reads with epoll, has little memory, and a
delivery stream that does not exist, so that it drops. A query that finds nothing has a typo, or asks for what the
relay does not say.
"""

import contextlib
import datetime
import http.server
import json
import math
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / 'lib'), str(TESTS / 'docs')]
import dashboards  # noqa: E402
from relay import DEADLINE_SECONDS, Relay, clean_environment, wait_until  # noqa: E402

FOLDER = pathlib.Path('dashboards').resolve()
# What Grafana puts in the place of its variables. Scrapes come twice a second.
VARIABLES = {
    'job': '.+',
    'instance': '.+',
    'stream': '.+',
    'delivery_stream': '.+',
    'usd_per_gb': '0.029',
    '__rate_interval': '4s',
    '__range': '1m',
}
CONFIGURATION = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: standpipe
    static_configs: [{{targets: {targets}}}]
"""

_SELECTOR = re.compile(r'\b(?:(?:standpipe|process)_\w+|\w+:standpipe_\w+:\w+|up(?=\{))(?:\{[^}]*\})?')
_LABEL_VALUES = re.compile(r'label_values\((.*), (\w+)\)')
_LISTENING = re.compile(r'msg="Listening on" address=(\S+)')


def main(relay, loadgen):
    rules()
    with contextlib.ExitStack() as stack:
        relays = start_relays(stack, relay, loadgen)
        prometheus = Prometheus(stack, [f'{host}:{port}' for host, port in (each.admin for each in relays)])
        trouble = threading.Thread(target=make_trouble, args=(relays, stop := threading.Event()), daemon=True)
        trouble.start()
        stack.callback(stop.set)
        answered = [prometheus.answers(query) for query in all_queries()]
        check_alerts(prometheus, relays)
        for each in relays:
            promtool('check', 'metrics', text=each.get('/metrics'))
    print(f'prometheus: {len(answered)} queries have answers, all rules are healthy')


def rules():
    """What needs no relay."""
    promtool('check', 'rules', '--lint=all', '--lint-fatal', FOLDER / 'alerts.yml')
    promtool('check', 'config', FOLDER / 'prometheus.yml')
    promtool('test', 'rules', FOLDER / 'alerts_test.yml')


def promtool(*arguments, text=None):
    done = subprocess.run(['promtool', *map(str, arguments)], input=text, capture_output=True, text=True)
    if done.returncode or done.stderr:
        sys.exit(f'promtool {" ".join(map(str, arguments))}:\n{done.stdout}{done.stderr}')


def all_queries():
    """(where it stands, PromQL) of all that the dashboard asks, and every selector of the rules."""
    for where, query in dashboards.queries(json.loads((FOLDER / 'standpipe.json').read_text())):
        for name, value in VARIABLES.items():
            query = re.sub(rf'\${name}\b', value, query)
        if match := _LABEL_VALUES.fullmatch(query):
            query = f'count by ({match[2]}) ({match[1]}{{{match[2]}!=""}})'.replace('}{', ', ')
        yield where, query
    text = re.sub(r'^ *#.*', '', (FOLDER / 'alerts.yml').read_text(), flags=re.MULTILINE)
    for name, rule in re.findall(r'^      - (?:alert|record): (\S+)\n(.*?)(?=^      - |\Z)', text, re.M | re.S):
        expression = rule.partition('expr:')[2].partition('\n        for:')[0].partition('\n        labels:')[0]
        for selector in _SELECTOR.findall(expression):
            yield f'rule {name}', selector


def start_relays(stack, relay, loadgen):
    """Two relays in front of an endpoint that fails now and then, and senders for both."""
    environment = clean_environment(
        AWS_REGION='eu-central-1',
        AWS_EC2_METADATA_DISABLED='true',
        AWS_CONTAINER_CREDENTIALS_FULL_URI=credentials(stack),
    )
    faults = ['--throttle-stream', 'slow', '--missing', 'gone', '--fail-records', '0.05', '--error-500', '0.05']
    sink = start(stack, [loadgen, 'sink', *faults], environment, stdout=subprocess.PIPE)
    endpoint = sink.stdout.readline().split()[-1]
    common = ['--destination', 'firehose', '--endpoint-url', endpoint, '--linger', '100ms', '--retry-max', '500ms']
    spool = stack.enter_context(tempfile.TemporaryDirectory())
    special = [
        ['--spool', spool, '--spool-mode', 'always', '--spool-free-floor', '0', '--spool-limit', '256MiB'],
        ['--io', 'epoll', '--memory', '48MiB', '--park-probe', '500ms'],
    ]
    relays = [stack.enter_context(Relay(relay, *common, *more, environment=environment)) for more in special]
    for each in relays:
        # It is stopped long before that.
        load = ['--rate', '1000', '--duration', '10m', '--streams', '3', '--connections', '4']
        start(stack, [loadgen, 'send', '--to', '{}:{}'.format(*each.address), *load], environment)
    return relays


def start(stack, command, environment, **options):
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, text=True, **options)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def credentials(stack):
    """The address of a metadata service whose credentials expire in an hour."""
    expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    answer = {
        'AccessKeyId': 'test',
        'SecretAccessKey': 'test',
        'Token': 'test',
        'Expiration': expiry.strftime('%Y-%m-%dT%H:%M:%SZ'),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return 'http://127.0.0.1:{}/credentials'.format(server.server_address[1])


def make_trouble(relays, stop):
    """Lines that are no events, streams that are stuck, and syncs, again and again."""
    lines = b'no-stream\n' + b'slow 1\n' * 100 + b'gone %s\n' % (b'x' * 1000) * 200 + b'!sync 1\nclicks 1\n!sync 2\n'
    while not stop.is_set():
        for relay in relays:
            with contextlib.suppress(OSError), socket.create_connection(relay.address) as connection:
                connection.sendall(lines)
        stop.wait(0.1)


class Prometheus:
    """A Prometheus that scrapes these targets; it ends with the stack."""

    def __init__(self, stack, targets):
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        configuration = scratch / 'prometheus.yml'
        configuration.write_text(CONFIGURATION.format(rules=json.dumps(str(FOLDER / 'alerts.yml')), targets=targets))
        log = scratch / 'log'
        command = ['prometheus', f'--config.file={configuration}', f'--storage.tsdb.path={scratch / "data"}']
        process = subprocess.Popen([*command, '--web.listen-address=127.0.0.1:0'], stderr=log.open('w'))
        stack.callback(process.wait)
        stack.callback(process.kill)
        self.address = wait_until('Prometheus to listen', lambda: _LISTENING.search(log.read_text()))[1]
        self.deadline = time.monotonic() + DEADLINE_SECONDS

    def get(self, path, **parameters):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f'http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}'
        try:
            with opener.open(url, timeout=DEADLINE_SECONDS) as answer:
                return json.load(answer)['data']
        except urllib.error.HTTPError as error:
            if error.code in (400, 422):
                sys.exit(f'Prometheus does not understand {parameters}: {json.load(error)["error"]}')
            # It is not ready yet.
            return {'result': [], 'groups': [], 'alerts': []}

    def answers(self, asked):
        """Waits until a query has an answer that is a number. All of them share one deadline."""
        where, query = asked
        while True:
            result = self.get('query', query=query)['result']
            if any(not math.isnan(float(sample['value'][1])) for sample in result):
                return asked
            if time.monotonic() > self.deadline:
                sys.exit(f'{where}: nothing was found in {DEADLINE_SECONDS} s by\n    {query}\nlast: {result}')
            time.sleep(0.1)


def check_alerts(prometheus, relays):
    """Every rule can be evaluated, and what the second relay drops is told in readable words."""

    def evaluated():
        found = [rule for group in prometheus.get('rules')['groups'] for rule in group['rules']]
        return found if found and all(rule['health'] != 'unknown' for rule in found) else None

    for rule in wait_until('all rules to be evaluated', evaluated):
        if rule['health'] != 'ok':
            sys.exit(f'rule {rule["name"]}: {rule["lastError"]}')

    def dropped():
        alerts = prometheus.get('alerts')['alerts']
        return [alert for alert in alerts if alert['labels']['alertname'] == 'StandpipeEventsDropped']

    wait_until('events to be dropped', lambda: relays[1].sum('standpipe_events_dropped_total', reason='parked'))
    [alert] = wait_until('the alert on it', dropped)
    wanted = '{}:{} has dropped events of gone (parked)'.format(*relays[1].admin)
    if alert['state'] != 'firing' or alert['annotations']['summary'] != wanted:
        sys.exit(f'the alert is {alert}, not "{wanted}"')
    for alert in prometheus.get('alerts')['alerts']:
        for text in alert['annotations'].values():
            if '<' in text or '{{' in text or not text:
                sys.exit(f'alert {alert["labels"]["alertname"]} says "{text}"')


if __name__ == '__main__':
    main(*sys.argv[1:])
