#!/usr/bin/env bash
# Measures cold first runs and hydration through slow links, and prints the rows of "Slow links" in
# docs/PERFORMANCE.md. TREE=DIR uses a Debian tree that is there (with git, gcc, python3-numpy); else one is
# made with debootstrap. RUNS=N (default 3): medians of so many. Needs root.
source "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "mounting for a chroot needs root"; exit 1; }
RUNS=${RUNS:-3}
SLOWLINK=$PWD/bin/slowlink
CONTROL=

if [ -z "${TREE:-}" ]; then
  TREE=$WORK/tree
  debootstrap --include=python3,python3-numpy,git,gcc,libc6-dev bookworm "$TREE" http://deb.debian.org/debian >"$WORK/debootstrap.log" 2>&1 ||
    { tail "$WORK/debootstrap.log"; exit 1; }
fi
echo "tree: $(find "$TREE" -xdev | wc -l) entries, $(du -smx "$TREE" | cut -f1) MB; $(nproc) cores, Linux $(uname -r), $(go version | cut -d' ' -f3)"

# link RTT MBIT: puts a slow link in front of the origin that is served at $URL; sets $SLOW.
link() {
  unlink_
  coproc CONTROL { exec "$SLOWLINK" -upstream "${URL#http://}" -rtt "$1" -mbit "$2"; }
  CONTROL_PID_=$CONTROL_PID
  read -r SLOW <&"${CONTROL[0]}"
  SLOW=http://${SLOW%/}/
}
unlink_() { [ -z "${CONTROL_PID_:-}" ] || { kill "$CONTROL_PID_" 2>/dev/null; wait "$CONTROL_PID_" 2>/dev/null || true; CONTROL_PID_=; }; }

workload() {
  case $1 in
    python) echo "python3 -c 'import numpy'" ;;
    git) echo 'git --version' ;;
    gcc) echo 'gcc -x c -o /tmp/hello /tmp/hello.c && /tmp/hello' ;;
  esac
}

down() { umount "$MNT/tmp" "$MNT/dev" 2>/dev/null || true; "$COPPICE" unmount --force "$MNT" 2>/dev/null || true; }
# up NAMESPACE FLAGS...: an empty cache, and a mount.
up() {
  down
  while pgrep -f "coppice daemon --cache $COPPICE_CACHE" >/dev/null; do sleep 0.05; done
  rm -rf "$COPPICE_CACHE"
  "$COPPICE" -q mount "$1/x" "$MNT" --origin "${SLOW:-$URL}" "${@:2}" >/dev/null
  mount -t tmpfs tmpfs "$MNT/tmp"
  mount --bind /dev "$MNT/dev"
  printf '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n' >"$MNT/tmp/hello.c"
}
metric() { curl -s --unix-socket "$COPPICE_CACHE/control.sock" http://daemon/metrics | awk -v m="coppice_cache_$1_total" '$1 == m {printf "%d\n", $2}'; }
now() { date +%s%N; }
median() { sort -n | awk '{a[NR]=$1} END {print a[int((NR+1)/2)]}'; }

# The origin twice: as it is imported, and with profiles laid out.
export COPPICE_ORIGIN=$WORK/plain
"$COPPICE" origin init "$WORK/plain" --keys "$WORK/keys" >/dev/null
export COPPICE_KEYS=$WORK/keys
"$COPPICE" -q tree import os "$TREE" >/dev/null
printf 'mounts:\n  - {path: /, tree: os}\n' >"$WORK/ns.yaml"
for w in python git gcc; do
  "$COPPICE" namespace publish "$w" -f "$WORK/ns.yaml" >/dev/null
  "$COPPICE" channel set "$w/x" "$w@1" >/dev/null
done
cp -a "$WORK/plain" "$WORK/laid"
serve "$WORK/plain" >/dev/null
PLAIN=$URL
SERVER_PLAIN=$SERVER
for w in python git gcc; do
  up "$w"
  "$COPPICE" -q profile record "$MNT" --name "$w" -o "$WORK/$w.profile" -- chroot "$MNT" sh -c "$(workload $w)" >/dev/null
  "$COPPICE" profile publish "$w" "$WORK/$w.profile" --origin "$WORK/laid" --json >"$WORK/$w.json"
done
down
SERVER=
serve "$WORK/laid" >/dev/null
LAID=$URL
trap 'kill $SERVER_PLAIN 2>/dev/null; unlink_; down; cleanup' EXIT

field() { python3 -c 'import json,sys; l=json.load(open(sys.argv[1]))["laid_out"][0]; print(l[sys.argv[2]])' "$WORK/$1.json" "$2"; }

# cold NAMESPACE FLAGS...: seconds from the end of the mount to the end of the first run; notes requests and bytes.
cold() {
  up "$@"
  local t; t=$(now)
  chroot "$MNT" sh -c "$(workload "$1")" >/dev/null
  t=$(($(now) - t))
  echo "$(metric requests) $(metric fetched_bytes)" >"$WORK/count"
  echo "scale=3; $t / 1000000000" | bc
}

echo
echo '| link | first run of | profile | with it (s) | requests | of profile / link + 4 RTT | without (s) | requests | ratio | a request a file, computed (s) |'
echo '|---|---|---|---|---|---|---|---|---|---|'
for l in "20ms 100" "80ms 20"; do
  read -r rtt mbit <<<"$l"
  for w in ${WORKLOADS:-python git gcc}; do
    bytes=$(($(field $w stored_bytes) + $(field $w catalog_bytes)))
    files=$(python3 -c 'import json,sys; print(len({e["path"] for e in json.load(open(sys.argv[1]))["entries"]}))' "$WORK/$w.profile")
    ideal=$(echo "scale=3; $bytes * 8 / ($mbit * 1000000) + 4 * ${rtt%ms} / 1000" | bc)
    naive=$(echo "$bytes * 8 / ($mbit * 1000000) + $files * ${rtt%ms} / 1000" | bc -l)
    URL=$PLAIN; link "$rtt" "$mbit"
    without=$(for _ in $(seq "$RUNS"); do cold $w; done | median); read -r n0 b0 <"$WORK/count"
    URL=$LAID; link "$rtt" "$mbit"
    with=$(for _ in $(seq "$RUNS"); do cold $w; done | median); read -r n1 b1 <"$WORK/count"
    printf '| %s, %s Mbit/s | `%s` | %.1f MB, %d files | %.2f | %d, %.1f MB | %.2f | %.2f | %d, %.1f MB | %.2f | %.1f |\n' "$rtt" "$mbit" "$(workload $w | cut -d'&' -f1 | xargs -0 echo -n)" \
      "$(echo "scale=2; $bytes / 1000000" | bc)" "$files" "$with" "$n1" "$(echo "scale=2; $b1 / 1000000" | bc)" "$(echo "scale=2; $with / $ideal" | bc)" \
      "$without" "$n0" "$(echo "scale=2; $b0 / 1000000" | bc)" "$(echo "scale=2; $without / $ideal" | bc)" "$naive"
  done
done
[ -z "${NOHYDRATE:-}" ] || exit 0
URL=$PLAIN; link 20ms 100
up python --no-prefetch
b=$(metric fetched_bytes); t=$(now)
"$COPPICE" cache hydrate "$MNT" >/dev/null
t=$(($(now) - t)); b=$(($(metric fetched_bytes) - b))
printf '\nhydrate at 20 ms, 100 Mbit/s: %.0f MB in %.1f s, %d %% of the link\n' "$(echo "$b / 1000000" | bc -l)" "$(echo "$t / 1000000000" | bc -l)" "$(echo "$b * 8 * 100 / ($t / 1000) / 100" | bc)"
