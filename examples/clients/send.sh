#!/usr/bin/env bash
# Sends the lines of standard input to a stream, and ends with 0 once the relay has said that all are safe.
#   send.sh HOST PORT STREAM
set -euo pipefail
exec 3<>"/dev/tcp/$1/$2"
sed "s|^|$3 |" >&3
echo '!sync 1' >&3
read -r answer <&3
[[ $answer == '!synced 1' ]] || { echo "$answer" >&2 && exit 1; }
