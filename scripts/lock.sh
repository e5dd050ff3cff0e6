#!/usr/bin/env bash
# Writes requirements/run.txt and requirements/dev.txt from pyproject.toml: pinned versions with hashes, and neither
# an index nor a path of the machine on which they were made.
#
# Versions already pinned are kept while they fit; LOCK_ARGS=--upgrade takes the newest, LOCK_ARGS='-P rich' one.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv-lock/bin/pip-compile ]; then
  "$(scripts/python.sh)" -m venv --clear .venv-lock
  .venv-lock/bin/python -m pip install -q --disable-pip-version-check 'pip-tools>=7.6,<8'
fi

compile() {
  local name=$1
  shift
  # shellcheck disable=SC2086  # LOCK_ARGS is a list of words
  .venv-lock/bin/pip-compile -q --generate-hashes --strip-extras --allow-unsafe --no-header \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options ${LOCK_ARGS:-} "$@" \
    --output-file "requirements/$name.txt" pyproject.toml
}

# The build backend is locked too: an editable install then needs no second, unlocked environment.
compile run --extra embedded --extra dashboard --all-build-deps
compile dev --extra embedded --extra documents --extra embed --extra dashboard --extra langgraph --extra dev --all-build-deps --constraint requirements/run.txt
echo "wrote requirements/run.txt ($(grep -c == requirements/run.txt)) and requirements/dev.txt ($(grep -c == requirements/dev.txt))"
