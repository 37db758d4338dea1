# Shared by the demos: a working directory that goes away, steps that are announced, an origin
# that is served.
set -euo pipefail
cd "$(dirname "$0")/../.."
COPPICE=$PWD/bin/coppice
WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/coppice-demo.XXXXXX")
MNT=$WORK/mnt
export COPPICE_CACHE=$WORK/cache COPPICE_RUN=$WORK/run
mkdir "$MNT"
SERVER=

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '$ coppice %s\n' "$*"; "$COPPICE" "$@"; }

cleanup() {
  status=$?
  set +e
  [ -z "${LOOP:-}" ] || kill "$LOOP" 2>/dev/null
  "$COPPICE" unmount --force "$MNT" 2>/dev/null
  [ -z "$SERVER" ] || kill "$SERVER" 2>/dev/null
  wait 2>/dev/null
  [ $status = 0 ] || { echo; echo "--- daemon's log:"; tail -n 20 "$WORK/cache/log/daemon.log"; } 2>/dev/null
  rm -rf "$WORK"
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# serve DIR: serves an origin and points COPPICE_ORIGIN_URL at it.
serve() {
  "$COPPICE" origin serve "$1" --listen 127.0.0.1:0 2>"$WORK/serve.log" &
  SERVER=$!
  for _ in $(seq 100); do
    URL=$(sed -n 's/.* on \(http:.*\)/\1/p' "$WORK/serve.log")
    [ -n "$URL" ] && break
    sleep 0.05
  done
  [ -n "$URL" ] || { cat "$WORK/serve.log"; exit 1; }
  echo "$URL"
}

# await TEXT COMMAND...: waits until COMMAND prints TEXT, for at most 10 s.
await() {
  want=$1; shift
  for _ in $(seq 200); do
    [ "$("$@" 2>/dev/null)" = "$want" ] && return 0
    sleep 0.05
  done
  echo "expected \"$want\" from: $*; got \"$("$@" 2>&1)\"" >&2
  return 1
}
