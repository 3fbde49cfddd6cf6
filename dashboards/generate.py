#!/usr/bin/env python3
"""Writes standpipe.json, the Grafana dashboard. Standard library only.

    dashboards/generate.py            writes it
    dashboards/generate.py --check    ends with 1 where it is not what this would write

A panel is a call below: its title, what it means, its queries, and where it differs from the rest. Ids and places
follow from the order, so that to move a panel is to move its call.
"""

import json
import pathlib
import sys

OUTPUT = pathlib.Path(__file__).parent / 'standpipe.json'
DATASOURCE = {'type': 'prometheus', 'uid': '${datasource}'}
# Where links to runbooks lead: a variable of the dashboard, since only its user knows where the docs are served.
RUNBOOK = '${docs}/operations.md#'

# What every query selects: the relays, and of them the streams, the delivery streams, or neither.
RELAY = 'job=~"$job", instance=~"$instance"'
STREAM = RELAY + ', stream=~"$stream"'
LANE = RELAY + ', delivery_stream=~"$delivery_stream"'
THROTTLED = LANE + ', outcome="throttled"'

GREEN, YELLOW, ORANGE, RED, BLUE = 'green', 'yellow', 'orange', 'red', 'blue'
# Firehose's examples of prices count 1,048,576 KiB as a GB.
GB_BYTES = '1073741824'


def rate(name, labels=STREAM, by='', window='$__rate_interval'):
    """The summed rate of a counter."""
    grouping = f' by ({by})' if by else ''
    return f'sum{grouping} (rate({name}{{{labels}}}[{window}]))'


def increase(name, labels=STREAM, by='', window='$__rate_interval'):
    grouping = f' by ({by})' if by else ''
    return f'sum{grouping} (increase({name}{{{labels}}}[{window}]))'


def quantile(share, name, labels=RELAY, by=''):
    grouping = f'le, {by}' if by else 'le'
    return f'histogram_quantile({share}, sum by ({grouping}) (rate({name}_bucket{{{labels}}}[$__rate_interval])))'


def quantiles(name):
    return [(quantile(share, name), legend) for share, legend in [(0.5, 'p50'), (0.95, 'p95'), (0.99, 'p99')]]


def steps(base, *rest):
    """Thresholds: the colour below the first, then (value, colour) upwards."""
    return [{'color': base, 'value': None}] + [{'color': color, 'value': value} for value, color in rest]


def targets(queries, **more):
    """Queries are (expression, legend) pairs."""
    return [
        {'refId': chr(ord('A') + index), 'datasource': DATASOURCE, 'expr': expr, 'legendFormat': legend, **more}
        for index, (expr, legend) in enumerate(queries)
    ]


def panel(kind, title, description, queries, unit, width, height, thresholds=None, runbook=None, **defaults):
    defaults = {'unit': unit, 'thresholds': {'mode': 'absolute', 'steps': thresholds or steps(GREEN)}, **defaults}
    links = [{'title': 'Runbook', 'url': RUNBOOK + runbook.lower(), 'targetBlank': True}] if runbook else []
    return {
        'type': kind,
        'title': title,
        'description': description,
        'datasource': DATASOURCE,
        'gridPos': {'w': width, 'h': height},
        'links': links,
        'targets': targets(queries),
        'fieldConfig': {'defaults': defaults, 'overrides': []},
        'options': {},
    }


def stat(title, description, query, unit, thresholds=None, width=3, runbook=None, graph='area', **defaults):
    made = panel('stat', title, description, [(query, '')], unit, width, 4, thresholds, runbook, **defaults)
    made['options'] = {
        'reduceOptions': {'calcs': ['lastNotNull'], 'fields': '', 'values': False},
        'colorMode': 'value',
        'graphMode': graph,
        'justifyMode': 'auto',
        'orientation': 'auto',
        'textMode': 'auto',
        'wideLayout': True,
    }
    return made


def series(
    title,
    description,
    queries,
    unit,
    thresholds=None,
    width=12,
    runbook=None,
    stack=False,
    bars=False,
    colors=None,
    dashed=(),
    **defaults,
):
    """Lines over time; `colors` by legend, `dashed` the legends of limits."""
    custom = {
        'drawStyle': 'bars' if bars else 'line',
        'lineWidth': 1,
        'fillOpacity': 60 if bars else 25 if stack else 8,
        'gradientMode': 'none',
        'lineInterpolation': 'linear',
        'showPoints': 'never',
        'spanNulls': False,
        'stacking': {'mode': 'normal' if stack else 'none', 'group': 'A'},
        'thresholdsStyle': {'mode': 'dashed' if thresholds else 'off'},
        'axisSoftMin': 0,
    }
    made = panel(
        'timeseries', title, description, queries, unit, width, 8, thresholds, runbook, custom=custom, **defaults
    )
    made['options'] = {
        'legend': {'displayMode': 'table', 'placement': 'bottom', 'showLegend': True, 'calcs': ['lastNotNull', 'max']},
        'tooltip': {'mode': 'multi', 'sort': 'desc'},
    }
    overrides = made['fieldConfig']['overrides']
    for legend, color in (colors or {}).items():
        overrides.append(override(legend, ('color', {'mode': 'fixed', 'fixedColor': color})))
    for legend in dashed:
        overrides.append(
            override(
                legend,
                ('custom.lineStyle', {'fill': 'dash', 'dash': [10, 6]}),
                ('custom.fillOpacity', 0),
                ('custom.stacking', {'mode': 'none', 'group': 'B'}),
                ('color', {'mode': 'fixed', 'fixedColor': RED}),
            )
        )
    return made


def override(name, *properties):
    return {
        'matcher': {'id': 'byName', 'options': name},
        'properties': [{'id': key, 'value': value} for key, value in properties],
    }


def heatmap(title, description, name, runbook=None):
    """A Prometheus histogram as one column of buckets a moment."""
    query = f'sum by (le) (increase({name}_bucket{{{RELAY}}}[$__rate_interval]))'
    made = panel('heatmap', title, description, [(query, '{{le}}')], 'short', 12, 8, runbook=runbook)
    made['targets'][0]['format'] = 'heatmap'
    made['options'] = {
        'calculate': False,
        'cellGap': 1,
        'color': {'mode': 'scheme', 'scheme': 'Oranges', 'steps': 64, 'exponent': 0.5, 'reverse': False},
        'exemplars': {'color': 'rgba(255,0,255,0.7)'},
        'filterValues': {'le': 1e-9},
        'legend': {'show': True},
        'rowsFrame': {'layout': 'auto'},
        'tooltip': {'mode': 'single', 'yHistogram': True, 'showColorScale': True},
        'yAxis': {'axisPlacement': 'left', 'reverse': False, 'unit': 's'},
    }
    return made


def states(title, description, query, legend, mappings, runbook=None):
    """Bands of colour over time; `mappings` is value to (text, colour)."""
    made = panel('state-timeline', title, description, [(query, legend)], 'none', 12, 8, runbook=runbook)
    options = {
        str(value): {'text': text, 'color': color, 'index': index}
        for index, (value, (text, color)) in enumerate(mappings.items())
    }
    made['fieldConfig']['defaults'].update(
        mappings=[{'type': 'value', 'options': options}], custom={'fillOpacity': 70, 'lineWidth': 0}
    )
    made['options'] = {
        'mergeValues': True,
        'showValue': 'never',
        'alignValue': 'left',
        'rowHeight': 0.9,
        'legend': {'displayMode': 'list', 'placement': 'bottom', 'showLegend': True},
        'tooltip': {'mode': 'single', 'sort': 'none'},
    }
    return made


def table(title, description, key, columns, width=24, height=9, sort=None):
    """One row for each value of the label `key`; `columns` are (name, query, unit, thresholds)."""
    queries = [(query, name) for name, query, _, _ in columns]
    made = panel('table', title, description, queries, 'short', width, height)
    for target in made['targets']:
        target.update(instant=True, range=False, format='table')
    names = {f'Value #{target["refId"]}': name for target, (name, *_) in zip(made['targets'], columns)}
    made['transformations'] = [
        {'id': 'joinByField', 'options': {'byField': key, 'mode': 'outer'}},
        {
            'id': 'organize',
            'options': {
                'excludeByName': {f'Time {index + 1}': True for index in range(len(columns))} | {'Time': True},
                'renameByName': names,
            },
        },
    ]
    made['fieldConfig']['overrides'] = [
        override(name, ('unit', unit), *colored(thresholds)) for name, _, unit, thresholds in columns
    ]
    made['options'] = {
        'showHeader': True,
        'cellHeight': 'sm',
        'footer': {'show': False, 'reducer': ['sum'], 'countRows': False, 'fields': []},
        'sortBy': [{'displayName': sort or columns[0][0], 'desc': True}],
    }
    return made


def colored(thresholds):
    if not thresholds:
        return []
    cell = {'type': 'color-text'}
    return [('custom.cellOptions', cell), ('thresholds', {'mode': 'absolute', 'steps': thresholds})]


def overview():
    ready = f'sum(standpipe_stage{{{RELAY}, stage="ready"}})'
    throttled = (
        f'{rate("standpipe_records_total", THROTTLED)} / '
        f'{rate("standpipe_records_total", LANE)}'
    )
    yield stat(
        'Relays ready',
        'Relays that take traffic: stage `ready`, not starting, in maintenance or draining.',
        ready,
        'short',
        steps(RED, (1, GREEN)),
        runbook='StandpipeNotReady',
    )
    yield stat(
        'Received', 'Events of good frames, all relays together.', rate('standpipe_events_received_total'), 'eps'
    )
    yield stat(
        'Delivered',
        'Events that the destination has accepted.',
        rate('standpipe_events_delivered_total'),
        'eps',
    )
    yield stat(
        'Dropped in range',
        'Events lost for any reason in the time range of the dashboard. Anything but 0 wants an explanation.',
        increase('standpipe_events_dropped_total', window='$__range'),
        'short',
        steps(GREEN, (1, RED)),
        runbook='StandpipeEventsDropped',
        decimals=0,
    )
    yield stat(
        'Held',
        'Events received and neither delivered nor dropped: open, queued, in a call, waiting for a retry, or on disk.',
        f'sum(standpipe_events_held{{{STREAM}}})',
        'short',
        runbook='StandpipeOldestHeldEvent',
    )
    yield stat(
        'Oldest held event',
        'Age of the oldest event that is still here. Near linger it is healthy.',
        f'max(standpipe_oldest_held_event_age_seconds{{{STREAM}}})',
        's',
        steps(GREEN, (60, YELLOW), (300, RED)),
        runbook='StandpipeOldestHeldEvent',
    )
    yield stat(
        'Latency p99',
        'From receiving an event until it was accepted; linger (1 s unless configured) is a part of it.',
        quantile(0.99, 'standpipe_delivery_latency_seconds'),
        's',
        steps(GREEN, (5, YELLOW), (10, RED)),
        runbook='StandpipeLatencyHigh',
    )
    yield stat(
        'Throttled records',
        'Share of the records that were refused for being over a quota, and are sent again.',
        throttled,
        'percentunit',
        steps(GREEN, (0.01, YELLOW), (0.05, RED)),
        runbook='StandpipeThrottled',
    )
    yield series(
        'Events per second',
        'What comes in, what goes out, and what is lost. The first two lie on each other where all is well.',
        [
            (rate('standpipe_events_received_total'), 'received'),
            (rate('standpipe_events_delivered_total'), 'delivered'),
            (rate('standpipe_events_dropped_total'), 'dropped'),
            (rate('standpipe_events_recovered_total'), 'recovered from spool'),
        ],
        'eps',
        colors={'received': BLUE, 'delivered': GREEN, 'dropped': RED, 'recovered from spool': 'purple'},
    )
    yield series(
        'Held events by place',
        'Where the events are that are still here. `open` and `queued` come and go with linger; `retry` grows while '
        'calls fail, and `spool` where memory does not suffice.',
        [(f'sum by (place) (standpipe_events_held{{{STREAM}}})', '{{place}}')],
        'short',
        stack=True,
        runbook='StandpipeOldestHeldEvent',
    )


def loss():
    unaccounted = ' - '.join(
        [
            f'sum by (instance) (standpipe_events_received_total{{{STREAM}}} + '
            f'standpipe_events_recovered_total{{{STREAM}}} - standpipe_events_delivered_total{{{STREAM}}})',
            f'sum by (instance) (standpipe_events_dropped_total{{{STREAM}}})',
            f'sum by (instance) (standpipe_events_held{{{STREAM}}})',
        ]
    )
    yield series(
        'Dropped events by reason',
        'Events lost, in each interval. The reasons are in docs/metrics.md.',
        [(increase('standpipe_events_dropped_total', by='reason'), '{{reason}}')],
        'short',
        bars=True,
        stack=True,
        runbook='StandpipeEventsDropped',
    )
    yield series(
        'Rejected frames by reason',
        'Lines that are no events: no space, an illegal name, too long, and so on. The senders are at fault.',
        [(increase('standpipe_frames_rejected_total', RELAY, by='reason'), '{{reason}}')],
        'short',
        bars=True,
        stack=True,
        runbook='StandpipeFramesRejected',
    )
    yield series(
        'Possible duplicates by cause',
        'Events sent again although an earlier call may have delivered them: after a call without a known outcome, or '
        'read back from what a killed process had left.',
        [(increase('standpipe_possible_duplicate_events_total', by='cause'), '{{cause}}')],
        'short',
        bars=True,
        stack=True,
        runbook='StandpipePossibleDuplicates',
    )
    yield series(
        'Unaccounted events',
        'received + recovered - delivered - dropped - held. 0 at rest, below 0 for a moment while events move (one on '
        'its way may be seen in two places). Above 0 an event would be lost without being counted.',
        [(unaccounted, '{{instance}}')],
        'short',
        steps(GREEN, (1, RED)),
        runbook='StandpipeEventsUnaccountedFor',
    )
    yield series(
        'Connections that ended badly',
        'Refused: beyond max_connections. Failed: reset by the peer, or broken. Stalled: closed for holding half a '
        'frame while memory was short.',
        [
            (rate('standpipe_connections_refused_total', RELAY), 'refused'),
            (rate('standpipe_connections_failed_total', RELAY), 'failed'),
            (rate('standpipe_connections_stalled_total', RELAY), 'stalled'),
        ],
        'cps',
        runbook='StandpipeConnectionsRefused',
    )
    yield series(
        'Syncs answered',
        'Answers to `!sync`: `synced` where all that it covered is safe, `lost` where some of it was rejected or '
        'dropped. Pending ones wait for their events to be safe.',
        [
            (rate('standpipe_syncs_total', RELAY, by='outcome'), '{{outcome}}'),
            (f'sum(standpipe_syncs_pending{{{RELAY}}})', 'pending'),
        ],
        'short',
        colors={'synced': GREEN, 'lost': RED},
        runbook='StandpipeSyncsLost',
    )


def latency():
    yield heatmap(
        'Delivery latency',
        'From receiving the oldest event of a batch until all of it was accepted, weighted by its events.',
        'standpipe_delivery_latency_seconds',
        runbook='StandpipeLatencyHigh',
    )
    yield series(
        'Delivery latency, quantiles',
        'The same as quantiles. Linger is a part of it.',
        quantiles('standpipe_delivery_latency_seconds'),
        's',
        steps(GREEN, (10, RED)),
        runbook='StandpipeLatencyHigh',
    )
    yield heatmap(
        'Call duration',
        'How long calls took until their answer.',
        'standpipe_call_duration_seconds',
        runbook='StandpipeLatencyHigh',
    )
    yield series(
        'Call duration, quantiles',
        'The same as quantiles. Near call_timeout (30 s unless configured) calls are cut off and sent again.',
        quantiles('standpipe_call_duration_seconds'),
        's',
        runbook='StandpipeLatencyHigh',
    )
    yield series(
        'Oldest held event by stream',
        'The streams whose oldest event has waited longest, on any relay.',
        [(f'topk(10, max by (stream) (standpipe_oldest_held_event_age_seconds{{{STREAM}}}))', '{{stream}}')],
        's',
        steps(GREEN, (300, RED)),
        width=24,
        runbook='StandpipeOldestHeldEvent',
    )


def delivery():
    yield series(
        'Delivered events by stream',
        'The fifteen streams with the most events. Those beyond max_stream_labels share `_other`.',
        [(f'topk(15, {rate("standpipe_events_delivered_total", by="stream")})', '{{stream}}')],
        'eps',
        stack=True,
    )
    yield series(
        'Delivered bytes by stream',
        'Payload, each event\'s line feed included, before base64.',
        [(f'topk(15, {rate("standpipe_payload_bytes_delivered_total", by="stream")})', '{{stream}}')],
        'Bps',
        stack=True,
    )
    dropped = increase('standpipe_events_dropped_total', by='stream', window='$__range')
    age = f'max by (stream) (standpipe_oldest_held_event_age_seconds{{{STREAM}}})'
    yield table(
        'Streams',
        'Every stream: events a second, what was dropped in the time range, what is held and for how long, and how '
        'many bytes are billed for one of payload (0 where the destination is not Firehose).',
        'stream',
        [
            ('Received/s', rate('standpipe_events_received_total', by='stream'), 'eps', None),
            ('Delivered/s', rate('standpipe_events_delivered_total', by='stream'), 'eps', None),
            ('Dropped in range', dropped, 'short', steps(GREEN, (1, RED))),
            ('Held', f'sum by (stream) (standpipe_events_held{{{STREAM}}})', 'short', None),
            ('Oldest', age, 's', steps(GREEN, (60, YELLOW), (300, RED))),
            ('Billed ÷ payload', billed_ratio('stream'), 'none', steps(GREEN, (1.5, YELLOW), (5, ORANGE))),
        ],
    )


def shards():
    yield series(
        'Busy shards',
        'Share of each shard\'s time spent working rather than waiting. A connection stays on the shard that has '
        'accepted it.',
        [(f'standpipe_shard_busy_ratio{{{RELAY}}}', '{{instance}} shard {{shard}}')],
        'percentunit',
        steps(GREEN, (0.9, RED)),
        runbook='StandpipeShardSaturated',
        max=1,
    )
    yield series(
        'Received bytes by shard',
        'Bytes read from sockets. Shards that differ much have unequal connections.',
        [(rate('standpipe_received_bytes_total', RELAY, by='instance, shard'), '{{instance}} shard {{shard}}')],
        'Bps',
        runbook='StandpipeShardImbalance',
    )
    yield series(
        'Received events by relay',
        'Relays behind one load balancer should have equal shares; long-lived connections keep to the relay that they '
        'came to first.',
        [(rate('standpipe_events_received_total', by='instance'), '{{instance}}')],
        'eps',
        runbook='StandpipeFleetImbalance',
    )
    yield series(
        'Connections',
        'Open now, by listener; opened each second; health probes (connections without a byte) among them; those that '
        'went to a shard with less to do; and those told to leave for their age.',
        [
            (f'sum by (listener) (standpipe_connections{{{RELAY}}})', 'open at {{listener}}'),
            (rate('standpipe_connections_opened_total', RELAY), 'opened/s'),
            (rate('standpipe_health_probes_total', RELAY), 'health probes/s'),
            (rate('standpipe_connections_moved_total', RELAY), 'moved to another shard/s'),
            (rate('standpipe_connections_aged_total', RELAY), 'told to leave for age/s'),
        ],
        'short',
        runbook='StandpipeConnectionsRefused',
    )
    yield series(
        'Processor time',
        'Of all threads, in processors.',
        [(rate('process_cpu_seconds_total', RELAY, by='instance'), '{{instance}}')],
        'short',
    )
    yield series(
        'Processor time per event',
        'What one received event costs, in all: reading, packing, hashing, sending.',
        [
            (
                f'{rate("process_cpu_seconds_total", RELAY, by="instance")} / '
                f'({rate("standpipe_events_received_total", RELAY, by="instance")} > 0)',
                '{{instance}}',
            )
        ],
        's',
    )
    yield series(
        'Open files and sockets',
        'Against the most that the process may have open.',
        [
            (f'max by (instance) (process_open_fds{{{RELAY}}})', '{{instance}}'),
            (f'min(process_max_fds{{{RELAY}}})', 'limit'),
        ],
        'short',
        dashed=['limit'],
        runbook='StandpipeFilesNearLimit',
    )
    yield table(
        'Relays',
        'Every relay: since when it runs, and with this configuration, its threads, its version and how it reads sockets.',
        'instance',
        [
            ('Running for', f'time() - max by (instance) (process_start_time_seconds{{{RELAY}}})', 's', None),
            (
                'Configured for',
                f'time() - max by (instance) (standpipe_config_last_reload_success_timestamp_seconds{{{RELAY}}})',
                's',
                None,
            ),
            ('Threads', f'max by (instance) (process_threads{{{RELAY}}})', 'short', None),
            ('Version', f'max by (instance, version) (standpipe_build_info{{{RELAY}}})', 'short', None),
            ('Driver', f'max by (instance, driver) (standpipe_io_driver_info{{{RELAY}}})', 'short', None),
            (
                'Stage',
                f'max by (instance, stage) (standpipe_stage{{{RELAY}}} == 1)',
                'short',
                None,
            ),
        ],
        width=12,
        height=8,
        sort='Running for',
    )
    yield series(
        'Reloads',
        'Times that the configuration was read again, and taken over (`done`) or not (`refused`): then what held before '
        'holds on, and the log says why.',
        [(increase('standpipe_config_reloads_total', RELAY, by='result'), '{{result}}')],
        'short',
        runbook='StandpipeReloadFailed',
    )


def memory_and_spool():
    share = (
        f'max by (instance) (standpipe_memory_bytes{{{RELAY}, state="events"}} / on (job, instance) '
        f'standpipe_memory_events_limit_bytes{{{RELAY}}})'
    )
    fill = (
        f'max by (instance) (standpipe_spool_bytes{{{RELAY}}} / (standpipe_spool_limit_bytes{{{RELAY}}} > 0))'
    )
    yield series(
        'Memory of events',
        'Share of what events may hold in memory. Near all of it senders wait or events are dropped, as `on_full` '
        'says.',
        [(share, '{{instance}}')],
        'percentunit',
        steps(GREEN, (0.75, YELLOW), (0.9, RED)),
        runbook='StandpipeMemoryAtLimit',
        max=1,
    )
    yield series(
        'Memory',
        'Charged to events, charged to half-received frames and paused connections, and resident in all, of the '
        'largest relay; and the limit.',
        [
            (f'max by (state) (standpipe_memory_bytes{{{RELAY}}})', '{{state}}'),
            (f'max(process_resident_memory_bytes{{{RELAY}}})', 'resident, as the system has it'),
            (f'min(standpipe_memory_limit_bytes{{{RELAY}}})', 'limit'),
        ],
        'bytes',
        dashed=['limit'],
        runbook='StandpipeMemoryAtLimit',
    )
    yield series(
        'Address space',
        'Virtual memory. It says little by itself; growth without end is a leak of mappings.',
        [(f'max by (instance) (process_virtual_memory_bytes{{{RELAY}}})', '{{instance}}')],
        'bytes',
    )
    yield series(
        'Paused connections',
        'Connections that are not read for lack of memory. Their senders wait.',
        [(f'sum by (instance) (standpipe_paused_connections{{{RELAY}}})', '{{instance}}')],
        'short',
        runbook='StandpipeConnectionsPaused',
    )
    yield series(
        'Spool',
        'Share of its limit that the spool takes; nothing is shown where there is no spool.',
        [(fill, '{{instance}}')],
        'percentunit',
        steps(GREEN, (0.8, YELLOW), (0.95, RED)),
        runbook='StandpipeSpoolFilling',
        max=1,
    )
    yield series(
        'Spool, bytes',
        'Bytes of the spool\'s files, and the limit.',
        [
            (f'sum by (instance) (standpipe_spool_bytes{{{RELAY}}})', '{{instance}}'),
            (f'min(standpipe_spool_limit_bytes{{{RELAY}}} > 0)', 'limit'),
        ],
        'bytes',
        dashed=['limit'],
        runbook='StandpipeSpoolFilling',
    )
    yield series(
        'Spool, damage and failure',
        'Segments put aside because something in them could not be read, in all; and whether the last write failed.',
        [
            (f'sum by (instance) (standpipe_spool_damaged_segments_total{{{RELAY}}})', '{{instance}} damaged segments'),
            (f'max by (instance) (standpipe_spool_failing{{{RELAY}}})', '{{instance}} is failing'),
        ],
        'short',
        runbook='StandpipeSpoolDamaged',
    )
    yield series(
        'Dead letters',
        'Bytes of the files of events that could not be delivered and are kept.',
        [(f'sum by (instance) (standpipe_dead_letter_bytes{{{RELAY}}})', '{{instance}}')],
        'bytes',
        runbook='StandpipeDeadLetters',
    )
    yield series(
        'Syncs to disk',
        'How long fsync took, of the spool and of the directory destination.',
        quantiles('standpipe_fsync_duration_seconds'),
        's',
        steps(GREEN, (1, RED)),
        runbook='StandpipeDiskSlow',
    )


def aws():
    outcomes = {'ok': GREEN, 'throttled': ORANGE, 'internal': RED, 'rejected': 'purple', 'unknown': YELLOW}
    yield series(
        'Calls by outcome',
        'Answered and failed calls. One counts as throttled where one of its records was.',
        [(rate('standpipe_calls_total', LANE, by='outcome'), '{{outcome}}')],
        'reqps',
        stack=True,
        colors=outcomes,
        runbook='StandpipeCallsFailing',
    )
    yield series(
        'Records by outcome',
        'What became of each record of those calls. Whatever is not `ok` is sent again.',
        [(rate('standpipe_records_total', LANE, by='outcome'), '{{outcome}}')],
        'short',
        stack=True,
        colors=outcomes,
        runbook='StandpipeCallsFailing',
    )
    throttled = (
        f'topk(10, {rate("standpipe_records_total", THROTTLED, by="delivery_stream")} / '
        f'{rate("standpipe_records_total", LANE, by="delivery_stream")})'
    )
    yield series(
        'Throttled by delivery stream',
        'Share of the records that were over a quota. A share that stays wants a higher quota, or one stream spread '
        'over several delivery streams.',
        [(throttled, '{{delivery_stream}}')],
        'percentunit',
        steps(GREEN, (0.002, YELLOW), (0.05, RED)),
        runbook='StandpipeThrottled',
    )
    yield series(
        'Rate by delivery stream',
        'Raw bytes a second that all relays together let themselves send, where there is a limit: max_bytes_per_second, '
        'or what throttling has taught them. Below the quota, relays have backed off further than they had to.',
        [
            (
                f'topk(10, sum by (delivery_stream) (standpipe_lane_rate_limit_bytes_per_second{{{LANE}}}))',
                '{{delivery_stream}}',
            )
        ],
        'Bps',
        runbook='StandpipeThrottled',
    )
    yield states(
        'Lanes',
        'The worst state of each delivery stream on any relay. Backing off: the last call failed and is tried again. '
        'Parked: refused for good, and probed. Those that are active all the time are left out.',
        f'max by (delivery_stream) (standpipe_lane_state{{{LANE}}}) and '
        f'max by (delivery_stream) (max_over_time(standpipe_lane_state{{{LANE}}}[$__range])) > 0',
        '{{delivery_stream}}',
        {0: ('active', GREEN), 1: ('backing off', YELLOW), 2: ('parked', RED)},
        runbook='StandpipeLaneParked',
    )
    yield series(
        'Calls in flight',
        'Calls without an answer, by delivery stream. At max_lane_calls (8 unless configured) it has no more to give.',
        [
            (
                f'topk(10, sum by (delivery_stream) (standpipe_calls_in_flight{{{LANE}}}))',
                '{{delivery_stream}}',
            )
        ],
        'short',
        runbook='StandpipeLatencyHigh',
    )
    yield series(
        'Credentials expire in',
        'Time left of the AWS credentials in use. They are renewed shortly before it is over, so it may come near 0, '
        'but not below. Nothing is shown where they do not expire.',
        [
            (
                f'min by (instance) (standpipe_credentials_expiry_timestamp_seconds{{{RELAY}}}) - time()',
                '{{instance}}',
            )
        ],
        's',
        steps(RED, (0, GREEN)),
        runbook='StandpipeCredentialsExpired',
    )


def billed_ratio(by):
    return (
        f'{rate("standpipe_billed_bytes_total", by=by)} / '
        f'({rate("standpipe_payload_bytes_delivered_total", by=by)} > 0)'
    )


def cost():
    billed = rate('standpipe_billed_bytes_total', window='$__range')
    alone = f'{rate("standpipe_events_delivered_total", window="$__range")} * 5120'
    usd = f'/ {GB_BYTES} * $usd_per_gb'
    yield stat(
        'USD per day',
        'What ingestion costs at the mean of the time range and the price of the variable $usd_per_gb. Conversion, '
        'partitioning, delivery into a VPC and the destination are billed apart.',
        f'{billed} * 86400 {usd}',
        'currencyUSD',
        width=6,
        runbook='StandpipeBilledMuchMore',
    )
    yield stat(
        'USD per 30 days',
        'The same for 30 days.',
        f'{billed} * 2592000 {usd}',
        'currencyUSD',
        width=6,
        runbook='StandpipeBilledMuchMore',
    )
    yield stat(
        'Saved by packing, USD per 30 days',
        'What it would cost more at least if every event were a record of its own: Firehose bills 5 KiB for each '
        'record that is shorter.',
        f'clamp_min({alone} - {billed}, 0) * 2592000 {usd} and {billed} > 0',
        'currencyUSD',
        width=6,
    )
    yield stat(
        'Billed ÷ payload',
        'Bytes billed for one of payload. 1.00 is the least; small records cost up to 5 KiB each.',
        billed_ratio(''),
        'none',
        steps(GREEN, (1.5, YELLOW), (5, ORANGE)),
        width=6,
        runbook='StandpipeBilledMuchMore',
        decimals=3,
    )
    yield series(
        'Billed and payload bytes',
        'Raw bytes with each record rounded up to 5 KiB, as Firehose bills Direct PUT, and the payload in them.',
        [
            (rate('standpipe_billed_bytes_total'), 'billed'),
            (rate('standpipe_payload_bytes_delivered_total'), 'payload'),
        ],
        'Bps',
        colors={'billed': ORANGE, 'payload': BLUE},
        runbook='StandpipeBilledMuchMore',
    )
    yield series(
        'Billed ÷ payload by stream',
        'The streams that waste most. A longer linger, or packing = "full", makes fuller records.',
        [(f'topk(10, {billed_ratio("stream")})', '{{stream}}')],
        'none',
        runbook='StandpipeBilledMuchMore',
    )
    records = rate('standpipe_records_total', LANE + ', outcome="ok"')
    yield series(
        'Packing',
        'Events in a record and records in a call, on average.',
        [
            (f'{rate("standpipe_events_delivered_total", RELAY)} / ({records} > 0)', 'events per record'),
            (f'{records} / ({rate("standpipe_calls_total", LANE)} > 0)', 'records per call'),
        ],
        'short',
    )
    yield series(
        'USD per day by stream',
        'The fifteen streams that cost most, at the price of the variable $usd_per_gb.',
        [(f'topk(15, {rate("standpipe_billed_bytes_total", by="stream")} * 86400 {usd})', '{{stream}}')],
        'currencyUSD',
        stack=True,
    )


ROWS = [
    ('Overview', overview, False),
    ('Loss', loss, False),
    ('Latency', latency, False),
    ('Delivery by stream', delivery, True),
    ('Shards and processes', shards, True),
    ('Memory and spool', memory_and_spool, True),
    ('AWS: errors and lanes', aws, True),
    ('AWS: cost', cost, True),
]


def variables():
    def of_labels(name, label, metric, text):
        query = f'label_values({metric}, {label})'
        return {
            'type': 'query',
            'name': name,
            'label': text,
            'datasource': DATASOURCE,
            'definition': query,
            'query': {'query': query, 'refId': f'Variable-{name}'},
            'refresh': 2,
            'sort': 1,
            'multi': True,
            'includeAll': True,
            # Everything, whatever appears later, and without an alternation of a thousand names.
            'allValue': '.+',
            'current': {'text': ['All'], 'value': ['$__all'], 'selected': True},
        }

    def of_text(name, text, value, description):
        current = {'text': value, 'value': value, 'selected': True}
        made = {'type': 'textbox', 'name': name, 'label': text, 'description': description, 'query': value}
        return {**made, 'current': current, 'options': [current]}

    source = {'type': 'datasource', 'name': 'datasource', 'label': 'Data source', 'query': 'prometheus', 'refresh': 1}
    return [
        {**source, 'current': {}, 'multi': False, 'includeAll': False},
        of_labels('job', 'job', 'standpipe_build_info', 'Job'),
        of_labels('instance', 'instance', 'standpipe_build_info{job=~"$job"}', 'Instance'),
        of_labels('stream', 'stream', f'standpipe_events_received_total{{{RELAY}}}', 'Stream'),
        of_labels('delivery_stream', 'delivery_stream', f'standpipe_calls_total{{{RELAY}}}', 'Delivery stream'),
        of_text('usd_per_gb', 'USD per GB', '0.029', 'Price of Direct PUT in the region, for the row on cost.'),
        of_text('docs', 'Docs', 'https://standpipe.example/docs', 'Where operations.md is, for links to runbooks.'),
    ]


def place(panels, top):
    """Gives panels their places, from left to right."""
    x, y, tallest = 0, top, 0
    for made in panels:
        grid = made['gridPos']
        if x + grid['w'] > 24:
            x, y, tallest = 0, y + tallest, 0
        grid.update(x=x, y=y)
        x += grid['w']
        tallest = max(tallest, grid['h'])
    return y + tallest


def dashboard():
    panels, y = [], 0
    for title, make, is_collapsed in ROWS:
        row = {'type': 'row', 'title': title, 'collapsed': is_collapsed, 'gridPos': {'x': 0, 'y': y, 'w': 24, 'h': 1}}
        inside = list(make())
        end = place(inside, y + 1)
        panels.append({**row, 'panels': inside if is_collapsed else []})
        panels += [] if is_collapsed else inside
        # What a collapsed row holds takes no room until it is opened.
        y = y + 1 if is_collapsed else end
    identifiers = iter(range(1, 1000))
    for made in panels:
        made['id'] = next(identifiers)
        for inner in made.get('panels', []):
            inner['id'] = next(identifiers)
    return {
        'uid': 'standpipe',
        'title': 'Standpipe',
        'description': 'A fleet of Standpipe relays: what comes in, what goes out, what is lost, and what it costs.',
        'tags': ['standpipe'],
        'schemaVersion': 39,
        'version': 1,
        'editable': True,
        'graphTooltip': 1,
        'refresh': '30s',
        'time': {'from': 'now-3h', 'to': 'now'},
        'timezone': 'browser',
        'fiscalYearStartMonth': 0,
        'weekStart': '',
        'annotations': {'list': [restarts()]},
        'links': [
            {
                'type': 'link',
                'title': 'Runbooks',
                'icon': 'doc',
                'url': RUNBOOK + 'alerts-and-runbooks',
                'targetBlank': True,
                'asDropdown': False,
                'includeVars': False,
                'keepTime': False,
                'tags': [],
                'tooltip': '',
            }
        ],
        'templating': {'list': variables()},
        'panels': panels,
    }


def restarts():
    """A line wherever a relay has started."""
    return {
        'name': 'Starts',
        'datasource': DATASOURCE,
        'enable': True,
        'iconColor': BLUE,
        'expr': f'process_start_time_seconds{{{RELAY}}} * 1000 and on (job, instance) standpipe_build_info{{{RELAY}}}',
        'useValueForTime': 'on',
        'titleFormat': '{{instance}} started',
        'step': '60s',
    }


def main():
    text = json.dumps(dashboard(), indent=2, ensure_ascii=False) + '\n'
    if '--check' in sys.argv[1:]:
        if not OUTPUT.exists() or OUTPUT.read_text() != text:
            sys.exit(f'{OUTPUT.name} is not what generate.py writes; run dashboards/generate.py')
        return
    OUTPUT.write_text(text)


if __name__ == '__main__':
    main()
