#!/usr/bin/env bash
# Runs a make target as uid 65534, in a fresh clone of this repository's last commit, with a home of its own.
#
# usage (as root): scripts/as-nobody.sh [target and arguments of make; default: demo]
#
# It shows that nothing needs root, an existing .venv, or a writable system: what an ordinary user meets. The clone,
# the home and everything below them are removed afterwards; KEEP=1 keeps them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ "$(id -u)" = 0 ] || { echo "only root can become another user" >&2; exit 64; }
[ $# -gt 0 ] || set -- demo

place=$(mktemp -d /tmp/cenote-nobody.XXXXXX)
[ -n "${KEEP:-}" ] || trap 'rm -rf "$place"' EXIT
git -c safe.directory='*' clone -q --no-hardlinks "$root" "$place/cenote"
mkdir "$place/home" "$place/tmp"
chown -R 65534:65534 "$place"

# Of our own environment only what pip needs to reach its index goes along.
keep=()
while IFS= read -r -d '' pair; do
  case $pair in
  PIP_* | [Hh][Tt][Tt][Pp]*_[Pp][Rr][Oo][Xx][Yy]=* | [Nn][Oo]_[Pp][Rr][Oo][Xx][Yy]=* | SSL_CERT_* | REQUESTS_CA_BUNDLE=* | CI=*) keep+=("$pair") ;;
  esac
done < <(env -0)

echo "as uid 65534 in $place/cenote, at $(git -C "$place/cenote" -c safe.directory='*' log -1 --format='%h %s'): make $*"
cd "$place/cenote"
started=$SECONDS
status=0
setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs env -i \
  HOME="$place/home" TMPDIR="$place/tmp" PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 "${keep[@]}" \
  make "$@" || status=$?
echo "as uid 65534: make $* ended with $status after $((SECONDS - started)) s"
exit $status
