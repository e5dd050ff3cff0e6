#!/usr/bin/env bash
# Makes .venv hold one of the hashed locks and this checkout; does nothing when it already does.
#
# usage: scripts/venv.sh run|dev
#
# `dev` contains `run` at the same versions, so a `dev` environment serves both. What it holds is written down as a
# checksum over the lock, pyproject.toml and the place; anything else, a half-finished install too, is built anew.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:?usage: scripts/venv.sh run|dev}

key() {
  { cat "requirements/$1.txt" pyproject.toml; pwd; } | "$python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

holds() {
  [ -f ".venv/holds-$1" ] && .venv/bin/python -c '' 2>/dev/null && [ "$(cat ".venv/holds-$1")" = "$(key "$1")" ]
}

python=$(scripts/python.sh)
if holds dev || holds "$wanted"; then
  exit 0
fi

echo "installing requirements/$wanted.txt into .venv …"
holds run || "$python" -m venv --clear .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
.venv/bin/python -m pip install -q --require-hashes --only-binary :all: -r "requirements/$wanted.txt"
.venv/bin/python -m pip install -q --no-deps --no-build-isolation -e .
key "$wanted" >".venv/holds-$wanted"
