"""Sends the lines of standard input to a stream, and ends with 0 once the relay has said that all are safe.

    send.py HOST PORT STREAM
"""

import socket
import sys

host, port, stream = sys.argv[1:]
with socket.create_connection((host, int(port))) as relay, relay.makefile('rwb') as lines:
    for payload in sys.stdin.buffer:
        lines.write(stream.encode() + b' ' + payload.rstrip(b'\n') + b'\n')
    lines.write(b'!sync 1\n')
    lines.flush()
    answer = lines.readline().decode().strip()
if answer != '!synced 1':
    sys.exit(answer or 'the connection ended; nothing is known of what was sent')
