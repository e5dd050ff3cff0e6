#!/usr/bin/env bash
# Installs the Debian packages that the tests need and that are not there: nothing at all on a prepared machine.
set -euo pipefail

missing=()
command -v git >/dev/null || missing+=(git)
command -v make >/dev/null || missing+=(make)
"$(dirname "$0")/python.sh" >/dev/null 2>&1 || missing+=(python3 python3-venv python3-pip)
[ -x /usr/lib/postgresql/15/bin/postgres ] || missing+=(postgresql-15) # the second PostgreSQL of `make judge`
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime) # wrong clocks of `make judge`
command -v chromium >/dev/null || missing+=(chromium)     # the dashboard is looked at
command -v promtool >/dev/null || missing+=(prometheus)   # alert rules and dashboards are asked of a real one

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "please install: ${missing[*]}" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
if [[ " ${missing[*]} " == *" postgresql-15 "* ]]; then
  # We want the programs, not a cluster that starts by itself.
  mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] ||
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
