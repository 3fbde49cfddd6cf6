"""Looks at dashboards/ without Grafana and without Prometheus: whether the dashboard is whole, every alert has its
runbook and its cases, and both speak of the metrics that there are. tests/prometheus.sh runs their queries."""

import itertools
import json
import pathlib
import re
import subprocess
import sys

FOLDER = pathlib.Path('dashboards')
OPERATIONS = pathlib.Path('docs/operations.md')

# What is neither deprecated nor a plugin.
PANELS = {'heatmap', 'row', 'stat', 'state-timeline', 'table', 'timeseries'}
SEVERITIES = {'critical', 'warning', 'info'}
# Grafana's own variables.
BUILT_IN = {'__all', '__range', '__rate_interval'}

_VARIABLE = re.compile(r'\$(?:\{(\w+)\}|(\w+))')
_METRIC = re.compile(r'\b(?:standpipe|process)_\w+')
_WINDOW = re.compile(r'\[([^\]]+)\]')
_ALERT = re.compile(r'^      - alert: (\w+)\n(.*?)(?=^      - |\Z)', re.MULTILINE | re.DOTALL)
_CASE = re.compile(r'alertname="(\w+)", alertstate="firing"\}\)\n +eval_time: \w+\n +exp_samples: \[(.?)')


def problems(documented, headings):
    """Everything that is wrong, as sentences. `documented` are the metrics' names and types, `headings` the anchors in
    the page with the runbooks."""
    dashboard = json.loads((FOLDER / 'standpipe.json').read_text())
    found = up_to_date() + list(layout(dashboard)) + list(contents(dashboard, headings)) + list(variables(dashboard))
    return found + list(alerts()) + list(names(dashboard, documented))


def up_to_date():
    done = subprocess.run([sys.executable, FOLDER / 'generate.py', '--check'], capture_output=True, text=True)
    return [done.stderr.strip()] if done.returncode else []


def panels(dashboard):
    """Every panel and row, those inside of collapsed rows too."""
    for panel in dashboard['panels']:
        yield panel
        yield from panel.get('panels', [])


def layout(dashboard):
    ids = [panel['id'] for panel in panels(dashboard)]
    if len(set(ids)) < len(ids):
        yield 'two panels of the dashboard have the same id'
    inside = [panel['panels'] for panel in dashboard['panels'] if panel.get('collapsed')]
    for together in [dashboard['panels'], *inside]:
        for panel in together:
            grid = panel['gridPos']
            if grid['x'] < 0 or grid['w'] < 1 or grid['x'] + grid['w'] > 24:
                yield f'panel "{panel["title"]}" is beyond the 24 columns of the dashboard'
        for one, other in itertools.combinations(together, 2):
            if overlap(one['gridPos'], other['gridPos']):
                yield f'the panels "{one["title"]}" and "{other["title"]}" lie on each other'


def overlap(one, other):
    def apart(start, length):
        return one[start] + one[length] <= other[start] or other[start] + other[length] <= one[start]

    return not apart('x', 'w') and not apart('y', 'h')


def contents(dashboard, headings):
    for panel in panels(dashboard):
        title = f'panel "{panel["title"]}"'
        if panel['type'] not in PANELS:
            yield f'{title} is of the type {panel["type"]}'
        if panel['type'] == 'row':
            continue
        if not panel.get('description'):
            yield f'{title} has no description'
        if not panel['fieldConfig']['defaults'].get('unit'):
            yield f'{title} has no unit'
        if len({target['refId'] for target in panel['targets']}) < len(panel['targets']):
            yield f'{title} has two queries with one refId'
        for target in panel['targets']:
            if target['datasource']['uid'] != '${datasource}':
                yield f'{title} has a fixed data source'
            for window in _WINDOW.findall(target['expr']):
                if window.removeprefix('$') not in BUILT_IN:
                    yield f'{title} has the fixed window [{window}]'
        for link in panel['links']:
            if link['url'].partition('#')[2] not in headings:
                yield f'{title} links to {link["url"]}, where there is no such heading'


def variables(dashboard):
    defined = {variable['name'] for variable in dashboard['templating']['list']}
    everything = json.dumps({key: value for key, value in dashboard.items() if key != 'description'})
    used = {braced or bare for braced, bare in _VARIABLE.findall(everything)} - BUILT_IN
    yield from (f'the dashboard uses ${name}, which it does not define' for name in sorted(used - defined))
    yield from (f'the dashboard defines ${name} and does not use it' for name in sorted(defined - used))


def queries(dashboard):
    """Every query in the dashboard, with where it stands."""
    for panel in panels(dashboard):
        for target in panel.get('targets', []):
            yield f'panel "{panel["title"]}"', target['expr']
    for annotation in dashboard['annotations']['list']:
        yield f'annotation "{annotation["name"]}"', annotation['expr']
    for variable in dashboard['templating']['list']:
        if variable['type'] == 'query':
            yield f'variable {variable["name"]}', variable['definition']


def alerts():
    rules = dict(_ALERT.findall((FOLDER / 'alerts.yml').read_text()))
    runbooks = set(re.findall(r'^### (Standpipe\w+)$', OPERATIONS.read_text(), re.MULTILINE))
    yield from (f'{OPERATIONS} has no section {name}' for name in sorted(set(rules) - runbooks))
    yield from (f'{OPERATIONS} has a section {name} without an alert' for name in sorted(runbooks - set(rules)))
    cases = set(_CASE.findall((FOLDER / 'alerts_test.yml').read_text()))
    for name, text in rules.items():
        severity = re.search(r'^          severity: (\w+)$', text, re.MULTILINE)
        if not severity or severity[1] not in SEVERITIES:
            yield f'alert {name} has no severity of {sorted(SEVERITIES)}'
        for key in ['summary', 'description', 'runbook_url']:
            if not re.search(rf'^          {key}: \S', text, re.MULTILINE):
                yield f'alert {name} has no {key}'
        if not text.rstrip().split('\n\n')[0].endswith(f'/operations.md#{name.lower()}'):
            yield f'the runbook_url of alert {name} does not lead to its section'
        if (name, '{') not in cases:
            yield f'alerts_test.yml has no case in which {name} fires'
        if (name, ']') not in cases:
            yield f'alerts_test.yml has no case in which {name} does not fire'


def names(dashboard, documented):
    """Dashboard and rules speak of metrics that exist, and every metric is looked at by one of them."""
    known = {name + suffix for name, kind in documented.items() for suffix in suffixes(kind)}
    rules = re.sub(r'^ *#.*', '', (FOLDER / 'alerts.yml').read_text(), flags=re.MULTILINE)
    used = set()
    for where, query in [*queries(dashboard), ('dashboards/alerts.yml', rules)]:
        # The names of recording rules have colons, and are not metrics of the relay.
        found = set(_METRIC.findall(re.sub(r'\b\w+:\w+:\w+', '', query)))
        yield from (f'{where} uses {name}, which is no metric of the relay' for name in sorted(found - known))
        used |= found
    for name, kind in documented.items():
        if not used & {name + suffix for suffix in suffixes(kind)}:
            yield f'{name} is on no panel and in no alert'


def suffixes(kind):
    return ['_bucket', '_sum', '_count'] if kind == 'histogram' else ['']
