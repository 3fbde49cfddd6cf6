"""Looks at the page of relays in every state, as tests/page.sh says.

    check.py RELAY LOADGEN CHROMIUM PICTURES
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request

from browser import Browser

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'lib'))
from relay import Relay, clean_environment, wait_until  # noqa: E402 (the line above makes it importable)

AWS = {'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test'}
LOAD_SECONDS = int(os.environ.get('PAGE_LOAD_SECONDS', 0))
README_PICTURE = pathlib.Path('docs/page.png')
README_HEIGHT = 828
STREAMS = ['clicks', 'views', 'orders', 'payments', 'logins', 'searches', 'carts', 'audit', 'errors', 'mobile-events',
           'web-vitals', 'impressions']
PAYLOAD = b'x' * 240


class Stage:
    """What the scenes share."""

    def __init__(self, relay, loadgen, browser, pictures, exits):
        self.binary, self.loadgen, self.browser, self.pictures, self._exits = relay, loadgen, browser, pictures, exits
        self.scratch = pathlib.Path(exits.enter_context(tempfile.TemporaryDirectory(prefix='standpipe-page-')))

    def relay(self, *arguments):
        return self._exits.enter_context(Relay(self.binary, '--linger', '500ms', *arguments,
                                               environment=clean_environment(**AWS)))

    def firehose(self, endpoint, *arguments):
        return self.relay('--destination', 'firehose', '--region', 'eu-central-1', '--endpoint-url', endpoint,
                          '--retry-max', '2s', *arguments)

    def sink(self, *arguments):
        """An endpoint that plays Firehose, and its URL."""
        process = self._start('sink', '--check', 'none', *arguments, stdout=subprocess.PIPE)
        return process, process.stdout.readline().decode().split()[-1]

    def load(self, relay, *arguments, streams=STREAMS):
        """Events on their way to a relay."""
        names = [word for name in streams for word in ('--stream', name)]
        return self._start('send', '--to', '{}:{}'.format(*relay.address), *names, *arguments)

    def open(self, relay, **look):
        page = self.browser.open(url(relay), **look)
        page.until('the first answer', 'document.body?.className === "live"')
        return page

    def _start(self, *command, **more):
        process = subprocess.Popen([self.loadgen, *command], env=clean_environment(), stderr=subprocess.DEVNULL, **more)

        def end():
            process.terminate()
            process.wait(timeout=30)
        self._exits.callback(end)
        return process


def main(relay, loadgen, chromium, pictures):
    pictures = pathlib.Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as exits:
        stage = Stage(relay, loadgen, exits.enter_context(Browser(chromium)), pictures, exits)
        # All run beside each other and are looked at from the start, so that every picture has some of the past.
        started = {scene: start(stage) for scene, start in ((is_throttled, start_throttled), (spool_fills, start_spooling),
                                                            (aws_is_down, start_down), (normal_load, start_normal))}
        for scene in (empty, rejected, many_streams, memory_is_full, is_throttled, spool_fills, aws_is_down, normal_load):
            scene(stage, *started.get(scene, ()))
            print(f'page: {scene.__name__.replace("_", " ")}: as it should be')
    print(f'page: the pictures are in {pictures}')


# ---- scenes

def empty(stage):
    """A new user is told how to send the first event, and sees it arrive."""
    relay = stage.relay('--destination', f'directory:{stage.scratch}/data')
    page = stage.open(relay)
    page.until('the welcome', 'document.querySelector("#welcome").offsetHeight > 0')
    page.picture(stage.pictures / 'empty.png')
    subprocess.run(['bash', '-c', page.text('#command-bash')], check=True)
    page.until('the first event to have arrived', 'document.querySelectorAll("#steps .done").length === 3')
    assert 'first event has arrived' in page.text('#welcome-title')
    page.picture(stage.pictures / 'first-event.png')
    assert [path.read_text() for path in (stage.scratch / 'data').glob('clicks/**/clicks-*')] == ['hello\n']
    figures_are_those_of_metrics(relay, page)
    no_complaints(page, relay)
    page.close()


def rejected(stage):
    """Lines that are not taken are shown, with who sent them; nothing in them becomes markup."""
    relay = stage.relay('--destination', 'null')
    page = stage.open(relay)
    with socket.create_connection(relay.address) as connection:
        peer = '{}:{}'.format(*connection.getsockname())
        connection.sendall(b'hello\nclicks \n/etc 1\n<img src=x onerror=alert(1)>\n!help\nhalf of a li')
    page.until('the lines', 'document.querySelectorAll("#rejected details").length === 5')
    assert '6 lines were not taken' in page.text('#rejected-count')
    said = page.text('#rejected')
    for words in ['1 × no_space', 'hello', '2 × bad_name', '/etc 1', '<img src=x onerror=alert(1)>', '1 × empty_payload', '!help', 'half of a li', peer]:
        assert words in said, f'{words} is not in {said}'
    assert 'was not taken' in page.text('#welcome-title')
    frames = json.loads(relay.get('/status'))['rejected']['bad_name']['frames']
    assert [frame['frame'] for frame in frames] == ['<img src=x onerror=alert(1)>', '/etc 1'], frames
    page.picture(stage.pictures / 'rejected.png')
    figures_are_those_of_metrics(relay, page)
    no_complaints(page, relay)
    page.close()


def many_streams(stage):
    """Ten thousand streams cost neither the relay nor the page more than their first rows."""
    count = 10_000
    relay = stage.relay('--destination', 'null', '--max-stream-labels', str(count))
    with socket.create_connection(relay.address) as connection:
        connection.sendall(b''.join(b'stream-%05d 1\n' % number for number in range(count)))
        connection.sendall(b'stream-07777 1\n' * 500)
    wait_until('all to be delivered', lambda: relay.sum('standpipe_events_delivered_total') == count + 500)
    page = stage.open(relay)
    assert page.text('#streams-count') == '10,000'
    assert page.run('document.querySelectorAll("#streams tr").length') == 20
    page.run('document.querySelector("[data-sort=received]").click()')
    page.until('the busiest', 'document.querySelector("#streams td").textContent === "stream-07777"')
    page.run('Object.assign(document.querySelector("#search"), { value: "0123" }).dispatchEvent(new Event("input"))')
    page.until('what was searched', 'document.querySelector("#streams-count").textContent === "11 of 10,000 found"')
    answer = relay.get('/status?streams=1000&lanes=1000')
    assert len(json.loads(answer)['streams']) == 1_000
    assert len(relay.get('/status')) < 100_000, len(relay.get('/status'))
    no_complaints(page, relay)
    page.close()


def memory_is_full(stage):
    """What is lost is large and red."""
    relay = stage.firehose('http://127.0.0.1:9', '--memory', '64MiB', '--on-full', 'drop')
    page = stage.open(relay, scheme='dark')
    send(relay, STREAMS[:10], 12_000)
    page.until('the words', said('critical', '^Memory for events is at its limit: 9|^Memory for events is at its limit: 100'))
    page.until('the words', said('critical', '^Events were dropped, .*: memory'))
    page.until('red', 'document.querySelector("#drops").classList.contains("some")')
    page.picture(stage.pictures / 'memory-full.png')
    figures_are_those_of_metrics(relay, page)
    no_complaints(page, relay)
    page.close()


def start_throttled(stage):
    _, endpoint = stage.sink('--quota', '60000')
    relay = stage.firehose(endpoint)
    page = stage.open(relay, scheme='dark')
    return relay, page, stage.load(relay, '--rate', '1500', '--duration', '10m', streams=STREAMS[:4])


def is_throttled(stage, relay, page, load):
    page.until('the words', said('warning', '(are|is) throttled: .*quota'))
    page.until('some of the past', past(8))
    page.picture(stage.pictures / 'throttled.png')
    load.terminate()
    no_complaints(page, relay)
    page.close()


def start_spooling(stage):
    relay = stage.firehose('http://127.0.0.1:9', '--spool', f'{stage.scratch}/spool', '--spool-limit', '8MiB',
                           '--spool-mode', 'always', '--spool-free-floor', '0', '--memory', '64MiB')
    page = stage.open(relay)
    return relay, page, stage.load(relay, '--rate', '1800', '--duration', '10m', streams=STREAMS[:6])


def spool_fills(stage, relay, page, load):
    words = page.until('the words', said('(critical|warning)', '^The spool is'))
    assert re.match(r'The spool is \d+ % full: [\d.]+ MiB of 8 MiB', words), words
    assert page.run('document.querySelector("#spool-meter").classList.contains("high")')
    page.picture(stage.pictures / 'spool-filling.png')
    load.terminate()
    load.wait()
    figures_are_those_of_metrics(relay, page)
    no_complaints(page, relay)
    page.close()


def start_down(stage):
    sink, endpoint = stage.sink('--latency', '15ms-60ms')
    relay = stage.firehose(endpoint, '--memory', '64MiB', '--drain-deadline', '1h')
    page = stage.open(relay)
    return relay, page, sink, stage.load(relay, '--rate', '900', '--duration', '10m', streams=STREAMS[:3])


def aws_is_down(stage, relay, page, sink, load):
    """The endpoint goes away; then the relay is told to drain, and then it goes away, too."""
    sink.terminate()
    page.until('the words', said('critical', r'^3 lanes cannot deliver to firehose.*the oldest held is [4-9] s old'))
    assert page.run('document.querySelectorAll("#lanes .pill.warn").length') == 3
    page.until('some of it', past(15))
    page.picture(stage.pictures / 'aws-down.png')
    load.terminate()
    load.wait()
    figures_are_those_of_metrics(relay, page)
    held = f'{int(relay.sum("standpipe_events_held"))} events are still to deliver'
    request = urllib.request.Request(url(relay) + 'drain', data=b'', method='POST')
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
    page.until('the words', said('warning', f'^Draining: {held}'))
    assert page.text('#stage') == 'draining'
    page.picture(stage.pictures / 'draining.png')
    no_complaints(page, relay)
    ledger = page.text('#ledger')
    relay.process.kill()
    page.until('the words', 'document.body.className === "lost"')
    words = page.text('#conditions')
    assert 'The relay gives no answer' in words and 'What stands below is as it was at' in words, words
    assert page.text('#ledger') == ledger, 'the last figures stay'
    page.picture(stage.pictures / 'lost.png')
    page.close()


def start_normal(stage):
    _, endpoint = stage.sink('--latency', '15ms-60ms')
    relay = stage.firehose(endpoint, '--shards', '2', '--spool', f'{stage.scratch}/spool-of-another')
    page = stage.open(relay, scheme='dark')
    # As real traffic has it, some streams have more than others.
    shares = ((1900, STREAMS[:2]), (900, STREAMS[:5]), (500, STREAMS[2:8]), (600, STREAMS))
    loads = [stage.load(relay, '--rate', str(rate), '--duration', '10m', '--connections', '6', '--seed', str(rate),
                        streams=streams) for rate, streams in shares]
    return relay, page, loads


def normal_load(stage, relay, page, loads):
    for step in range(LOAD_SECONDS // 10):
        burst(stage, relay, step)
    page.until('some of the past', past(15))
    page.until('latencies', 'document.querySelector("#p50").textContent !== "–"')
    assert page.text('#stage') == 'ready'
    assert 'All is well' in page.text('#conditions')
    assert page.run('document.querySelector("#pipe").classList.contains("flowing")')
    page.picture(stage.pictures / 'normal-dark.png')
    if LOAD_SECONDS:
        page.picture(README_PICTURE, height=README_HEIGHT)
    page.look(scheme='light')
    readable(page)
    page.picture(stage.pictures / 'normal-light.png')
    for scheme in ('light', 'dark'):
        page.look(width=390, scheme=scheme)
        fits(page)
        readable(page)
        page.picture(stage.pictures / f'phone-{scheme}.png')
    page.look()
    everything_has_a_name(page)
    for load in loads:
        load.terminate()
        load.wait()
    wait_until('all to be settled', lambda: relay.sum('standpipe_events_held') == 0 and relay.sum('standpipe_connections') == 0)
    figures_are_those_of_metrics(relay, page)
    no_complaints(page, relay)
    page.close()


def burst(stage, relay, step):
    """Ten seconds of a little more."""
    rate = [400, 1200, 900, 2600, 300, 1500, 700][step % 7]
    load = stage.load(relay, '--rate', str(rate), '--duration', '9s', '--seed', str(step + 1))
    while load.poll() is None:
        stage.browser.hear(0.2)


# ---- what must hold

def figures_are_those_of_metrics(relay, page):
    """At rest, every figure of the page is the one that /metrics has."""
    wait_until('nothing to move', lambda: at_rest(relay))
    metrics = relay.metrics()

    def total(name, **labels):
        wanted = set(labels.items())
        return int(sum(value for (key, have), value in metrics.items() if key == f'standpipe_{name}' and wanted <= set(have)))
    received, recovered = total('events_received_total'), total('events_recovered_total')
    more = f' + {recovered:,} recovered from disk' if recovered else ''
    ledger = (f'{received:,} received{more} = {total("events_delivered_total"):,} delivered + '
              f'{total("events_dropped_total"):,} dropped + {total("events_held"):,} held ✓')
    page.until(f'the ledger to be {ledger}', f'document.querySelector("#ledger").textContent === {json.dumps(ledger)}')
    places = json.loads(page.run('''JSON.stringify(Object.fromEntries([...document.querySelectorAll("#pipe .place b")]
        .map((one) => [one.parentNode.dataset.key, one.title])))'''))
    # Where a lane fails, its events go from one place to another and back.
    if total('lane_state') == 0:
        assert places == {place: f'{total("events_held", place=place):,}' for place in places}, places
    assert sum(int(held.replace(',', '')) for held in places.values()) == total('events_held'), places
    rows = json.loads(page.run('''JSON.stringify([...document.querySelectorAll("#streams tr")]
        .map((row) => [...row.children].map((cell) => cell.textContent)))'''))
    for stream, _, *rest in rows:
        wanted = [f'{total(name, stream=stream):,}' for name in ('events_received_total', 'events_delivered_total', 'events_held')]
        assert rest[:3] == wanted, (stream, rest, wanted)
        assert rest[4] == f'{total("events_dropped_total", stream=stream):,}', (stream, rest)
    assert page.text('#dropped') == f'{total("events_dropped_total"):,}'
    assert page.text('#connections') == f'{total("connections"):,}'
    rejected = total('frames_rejected_total')
    assert re.sub(r'\D', '', page.text('#rejected-count')) == (str(rejected) if rejected else '')


def at_rest(relay):
    first, second = relay.metrics(), relay.metrics()
    counts = ('standpipe_events_received_total', 'standpipe_events_delivered_total')
    is_open = any(value for (name, labels), value in first.items() if name == 'standpipe_events_held' and ('place', 'open') in labels)
    return not is_open and all(first[key] == second[key] for key in first if key[0] in counts)


def no_complaints(page, relay):
    """Nothing on the console, no rule broken, and nobody asked but the relay."""
    assert page.complaints == [], page.complaints
    foreign = [one for one in page.requests if not one.startswith((url(relay), 'data:'))]
    assert page.requests and foreign == [], foreign


def fits(page):
    """Nothing is wider than the screen."""
    page.until('the layout', 'new Promise((done) => requestAnimationFrame(() => done(true)))')
    wide = page.run('''JSON.stringify([document.documentElement.scrollWidth, ...[...document.body.querySelectorAll("*")]
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest("svg"))
        .map((one) => `${one.tagName} ${one.className} ${one.id}`)])''')
    assert json.loads(wide) == [page.width], wide


CONTRASTS = r'''
(() => {
  const channels = (text) => {
    const numbers = text.match(/[\d.]+/g).map(Number);
    const rgb = text.startsWith("color(") ? numbers.slice(0, 3).map((one) => 255 * one) : numbers.slice(0, 3);
    return [...rgb, numbers[3] ?? 1];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const [r, g, b, a] = channels(getComputedStyle(one).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!own || !node.offsetParent || node.matches(".skip")) continue;
    const [one, other] = [light(channels(getComputedStyle(node).color).slice(0, 3)), light(behind(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)}: ${node.tagName} ${node.className} ${node.textContent.slice(0, 40)}`);
  }
  return JSON.stringify(bad);
})()'''


def readable(page):
    """The contrast that WCAG 2.2 asks for at level AA (1.4.3)."""
    assert json.loads(page.run(CONTRASTS)) == [], page.run(CONTRASTS)


def everything_has_a_name(page):
    """What can be used or has a meaning can be read out."""
    nodes = page.call('Accessibility.getFullAXTree')['nodes']
    wanted = {'button', 'link', 'meter', 'searchbox', 'img', 'image', 'figure', 'region', 'table', 'columnheader'}
    mute = {'figure', 'table'}
    named = [(node['role']['value'], node.get('name', {}).get('value')) for node in nodes if not node.get('ignored')]
    roles = {role for role, _ in named}
    assert {'button', 'meter', 'searchbox', 'table', 'main'} <= roles, roles
    assert [role for role, name in named if role in wanted - mute and not name] == []


# ---- small things

def said(severity, pattern):
    """An expression: the first condition of this severity that matches."""
    return f'''[...document.querySelectorAll(".condition")].filter((one) => /{severity}/.test(one.className))
        .map((one) => one.textContent).find((text) => /{pattern}/.test(text))'''


def past(seconds):
    """An expression: whether so many seconds are plotted."""
    return f'document.querySelector("#chart-events .a").getAttribute("d").split("L").length >= {seconds}'


def send(relay, streams, events):
    with socket.create_connection(relay.address) as connection:
        for stream in streams:
            connection.sendall((stream.encode() + b' ' + PAYLOAD + b'\n') * events)


def url(relay):
    return 'http://{}:{}/'.format(*relay.admin)


if __name__ == '__main__':
    main(*sys.argv[1:])
