#!/usr/bin/env bash
# Prints the interpreter to build virtual environments with: $PYTHON, or the first one >= 3.11 that can make them.
set -euo pipefail

usable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
  if usable "$candidate"; then
    command -v "$candidate"
    exit 0
  fi
done
echo "no usable Python found (tried: ${PYTHON:-python3.11 python3 python3.12 python3.13})." >&2
echo "cenote needs Python >= 3.11 with venv and pip; on Debian: apt-get install python3-venv" >&2
exit 1
