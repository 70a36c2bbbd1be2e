#!/bin/sh
# Installs the Redis server that the store's tests start for themselves (Debian, Ubuntu).
# Does nothing where there is a redis-server or valkey-server; without one those tests are skipped
# with a reason. No service is started: the tests run private servers on unix sockets.
set -eu
if command -v redis-server >/dev/null 2>&1 || command -v valkey-server >/dev/null 2>&1; then
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || { echo "no apt-get here: install redis-server yourself" >&2; exit 1; }
run=""
[ "$(id -u)" -eq 0 ] || run="sudo"
$run apt-get update -qq
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $run apt-get install -y -qq --no-install-recommends \
    redis-server
