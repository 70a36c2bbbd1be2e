#!/bin/sh
# Installs the headless browser that the report's tests look through (Debian, Ubuntu).
# Does nothing where there is one; without it those tests are skipped with a reason.
set -eu
if command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || { echo "no apt-get here: install chromium yourself" >&2; exit 1; }
run=""
[ "$(id -u)" -eq 0 ] || run="sudo"
$run apt-get update -qq
DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends \
    chromium chromium-driver fonts-dejavu-core
