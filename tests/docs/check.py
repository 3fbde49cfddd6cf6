"""Compares the documentation with the relay.

    check.py --check|--write RELAY
"""

import pathlib
import re
import socket
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
import dashboards  # noqa: E402
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

CONFIGURATION = pathlib.Path('docs/configuration.md')
METRICS = pathlib.Path('docs/metrics.md')
EXPOSITION = pathlib.Path('src/metrics/exposition.rs')

_BLOCK = re.compile(r'(?<=```toml\n# Standpipe\'s configuration).*?(?=^```$)', re.DOTALL | re.MULTILINE)
_ROW = re.compile(r'^\| `((?:standpipe|process)_\w+)` \| (\w+) \| ([^|]*)\|', re.MULTILINE)
_LINK = re.compile(r'\]\(([^)#\s]+)?(#[^)\s]+)?\)')


def main(mode, binary):
    problems = configuration(binary, mode == '--write') + metrics(binary) + links()
    documented = {name: kind for name, kind, _ in _ROW.findall(METRICS.read_text())}
    problems += dashboards.problems(documented, anchors(dashboards.OPERATIONS))
    for problem in problems:
        print(f'docs: {problem}', file=sys.stderr)
    if problems:
        sys.exit(1)
    print('docs: the configuration, the metrics, the links and the dashboards are right')


def configuration(binary, write):
    """The block in the page is what `standpipe config` prints."""
    text = CONFIGURATION.read_text()
    command = [binary, 'config']
    printed = subprocess.run(command, env=clean_environment(), check=True, capture_output=True, text=True).stdout
    first = "# Standpipe's configuration"
    assert printed.startswith(first), 'the first line of `standpipe config` has changed: look for the new one here'
    blocks = _BLOCK.findall(text)
    assert len(blocks) == 1, f'{CONFIGURATION} has {len(blocks)} blocks that start as `standpipe config` does'
    wanted = printed.removeprefix(first).rstrip('\n') + '\n'
    if blocks[0] == wanted:
        return []
    if write:
        CONFIGURATION.write_text(_BLOCK.sub(lambda _: wanted, text))
        return []
    return [f'{CONFIGURATION} is not what `standpipe config` prints; tests/docs.sh --write mends it']


def metrics(binary):
    """The page has every family of the source and no other, and what is served has the types and labels of the page."""
    page = {name: (kind, set(re.findall(r'`(\w+)`', labels))) for name, kind, labels in _ROW.findall(METRICS.read_text())}
    source = set(re.findall(r'"((?:standpipe|process)_\w+)"', EXPOSITION.read_text()))
    problems = [f'{METRICS} lacks {name}' for name in sorted(source - set(page))]
    problems += [f'{METRICS} has {name}, which {EXPOSITION} has not' for name in sorted(set(page) - source)]
    for name, served in sorted(exposition(binary).items()):
        if name in page and page[name] != served:
            problems.append(f'{name} is served as {served}, but {METRICS} has {page[name]}')
        if name not in page:
            problems.append(f'{name} is served, but {METRICS} lacks it')
    return problems


def exposition(binary):
    """Type and labels of every family that a relay serves that has taken an event."""
    with Relay(binary, '--destination', 'null', '--linger', '10ms') as relay:
        with socket.create_connection(relay.address) as connection:
            connection.sendall(b'clicks 1\n')
        wait_until('an event to be delivered', lambda: relay.sum('standpipe_events_delivered_total') == 1)
        text, samples = relay.get('/metrics'), relay.metrics()
        assert relay.terminate() == 0
    families = dict(re.findall(r'^# TYPE (\w+) (\w+)$', text, re.MULTILINE))
    labels = {name: set() for name in families}
    for name, pairs in samples:
        labels.setdefault(name, set()).update(key for key, _ in pairs)
    return {name: (kind, labels[name]) for name, kind in families.items()}


def links():
    """Every link between pages leads to a file, and to a heading where it names one."""
    problems = []
    for page in sorted([*pathlib.Path().glob('*.md'), *pathlib.Path('docs').glob('**/*.md')]):
        for path, anchor in _LINK.findall(page.read_text()):
            if path.startswith(('http:', 'https:')):
                continue
            target = page.parent / path if path else page
            if not target.exists():
                problems.append(f'{page} links to {path}, which is not there')
            elif anchor and anchor.removeprefix('#') not in anchors(target):
                problems.append(f'{page} links to {path}{anchor}, where there is no such heading')
    return problems


def anchors(page):
    headings = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


if __name__ == '__main__':
    main(*sys.argv[1:])
