#!/bin/sh
# Installs the PostgreSQL server that the tests of answers start for themselves (Debian, Ubuntu).
# Does nothing where there is one; without one those tests are skipped with a reason. No service is
# started: the tests run a private server on a unix socket.
set -eu
if command -v initdb >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || { echo "no apt-get here: install PostgreSQL yourself" >&2; exit 1; }
run=""
[ "$(id -u)" -eq 0 ] || run="sudo"
$run apt-get update -qq
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $run apt-get install -y -qq --no-install-recommends \
    postgresql
