#!/usr/bin/env bash
# Measures the main job against the native file system, in one run, and prints the rows of
# docs/PERFORMANCE.md. TREE=DIR uses a tree that is there; else one is made with debootstrap.
# RUNS=N (default 3): medians of so many. Needs root: it drops the kernel's caches.
source "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "dropping caches needs root"; exit 1; }
RUNS=${RUNS:-3}
INCLUDE=${INCLUDE:-python3,python3-numpy,perl,git,vim,curl}

drop() { sync; echo 3 >/proc/sys/vm/drop_caches; }
secs() { local s; s=$(date +%s.%N); "$@" >/dev/null; echo "$(date +%s.%N) - $s" | bc; }
median() { sort -n | awk '{a[NR]=$1} END {print a[int((NR+1)/2)]}'; }
walk() { find "$1" -xdev -printf '%s %m %u %T@ %n\n'; }
tarc() { tar -C "$1" -cf - . | cat; }
times() { for _ in $(seq "$RUNS"); do "$@"; done | median; }
ratio() { echo "scale=2; $1 / $2" | bc; }
row() { printf '| %s | %s | %s | %s | %s |\n' "$1" "$2" "$3" "$(ratio "$2" "$3")" "$4"; }
metric() { curl -s --unix-socket "$COPPICE_CACHE/control.sock" http://daemon/metrics | awk -v m="$1" '$1 == m {printf "%d\n", $2}'; }
remount() { "$COPPICE" unmount "$MNT" 2>/dev/null || true; "$COPPICE" -q mount os/x "$MNT" --origin "$URL" >/dev/null; }
fresh() { "$COPPICE" unmount "$MNT" 2>/dev/null || true; sleep 0.5; rm -rf "$COPPICE_CACHE"; remount; drop; }

if [ -z "${TREE:-}" ]; then
  TREE=$WORK/tree
  debootstrap --include="$INCLUDE" bookworm "$TREE" http://deb.debian.org/debian >"$WORK/debootstrap.log" 2>&1 ||
    { tail "$WORK/debootstrap.log"; exit 1; }
  rm -f "$TREE"/var/cache/apt/archives/*.deb
fi
entries=$(find "$TREE" -xdev | wc -l)
echo "tree: $entries entries, $(du -smx "$TREE" | cut -f1) MB; $(nproc) cores, Linux $(uname -r), $(go version | cut -d' ' -f3)"
echo
echo '| what | Coppice | native | ratio | target |'
echo '|---|---|---|---|---|'

export COPPICE_ORIGIN=$WORK/origin
tarc "$TREE" >/dev/null # the source in the page cache, for both
base() { tar -C "$TREE" -cf - . | zstd -3 -T0 -q -f -o "$WORK/base.zst"; }
import() { rm -rf "$WORK/origin" "$WORK/origin.keys"; "$COPPICE" -q origin init "$WORK/origin" </dev/null >/dev/null; "$COPPICE" -q tree import os "$TREE"; }
native=$(times secs base)
ours=$(times secs import)
row "import, against tar \\| zstd -3 -T0 (s)" "$ours" "$native" "≤ 1.5"
row "stored size (MB)" "$(du -sm "$WORK/origin" | cut -f1)" "$(du -m "$WORK/base.zst" | cut -f1)" "≤ 1.10"
cp -a "$TREE" "$WORK/patched"
find "$WORK/patched" -xdev -type f -size +0 | sort | awk 'NR % 33 == 0' | while read -r f; do echo x >>"$f"; done
tarc "$WORK/patched" >/dev/null
row "re-import, 3 % of files changed, against the full import (s)" "$(secs "$COPPICE" -q tree import os "$WORK/patched")" "$ours" "≤ 0.25"
rm -rf "$WORK/patched" "$WORK/base.zst"
for v in 1 2; do
  printf 'mounts:\n  - {path: /, tree: os@%d}\n' $v >"$WORK/ns.yaml"
  "$COPPICE" namespace publish os -f "$WORK/ns.yaml" >/dev/null
done
"$COPPICE" channel set os/x os@1 >/dev/null
serve "$WORK/origin" >/dev/null

cold_walk() { fresh; secs walk "$MNT"; }
fresh; walk "$MNT" >/dev/null
requests=$(metric coppice_cache_requests_total)
cold=$(for _ in $(seq "$RUNS"); do fresh; secs tarc "$MNT"; done | median)
n=$(metric coppice_cache_requests_total); b=$(metric coppice_cache_fetched_bytes_total)
warm_tar=$(for _ in $(seq "$RUNS"); do remount; drop; secs tarc "$MNT"; done | median)
native_tar=$(for _ in $(seq "$RUNS"); do drop; secs tarc "$TREE"; done | median)
warm_walk=$(for _ in $(seq "$RUNS"); do remount; drop; secs walk "$MNT"; done | median)
native_walk=$(for _ in $(seq "$RUNS"); do drop; secs walk "$TREE"; done | median)
tarc "$MNT" >/dev/null; tarc "$TREE" >/dev/null
row "hot walk (s)" "$(times secs walk "$MNT")" "$(times secs walk "$TREE")" "≤ 1.10"
row "hot tar (s)" "$(times secs tarc "$MNT")" "$(times secs tarc "$TREE")" "≤ 1.10"
if [ -e "$TREE/usr/lib/python3/dist-packages/numpy" ]; then
  np() { chroot "$1" python3 -c 'import numpy'; }
  np "$MNT"; np "$TREE"
  row "hot python3 -c 'import numpy' (s)" "$(for _ in 1 2 3 4 5 6 7 8 9; do secs np "$MNT"; done | median)" "$(for _ in 1 2 3 4 5 6 7 8 9; do secs np "$TREE"; done | median)" "≤ 1.10"
fi
row "warm walk (s)" "$warm_walk" "$native_walk" "≤ 1.8"
row "warm tar (s)" "$warm_tar" "$native_tar" "≤ 1.2"
row "cold tar over loopback HTTP, against warm (s)" "$cold" "$warm_tar" "≤ 1.6"
printf '| cold walk of all metadata: requests | %s | | | ≤ 20 |\n' "$requests"
printf '| cold tar: KB fetched a request | %s | | | ≥ 256 |\n' "$((b / n / 1024))"
pid=$(pgrep -f "coppice daemon --cache $COPPICE_CACHE" | head -1)
printf '| daemon, RssAnon after all of it (MB) | %s | | | ≤ 100 |\n' "$(($(awk '/RssAnon/ {print $2}' "/proc/$pid/status") / 1024))"

"$COPPICE" cache hydrate "$MNT" >/dev/null
"$COPPICE" channel set os/x os@2 >/dev/null; sleep 1; "$COPPICE" cache hydrate "$MNT" >/dev/null
for i in $(seq 100); do "$COPPICE" channel set os/x os@$((i % 2 + 1)) >/dev/null; done
sleep 1
# From the record's arrival to the new view: staging and swapping, as the daemon logs them.
sed -n 's/.*msg=activated.* staged=\([^ ]*\) swapped=\([^ ]*\).*/\1 \2/p' "$COPPICE_CACHE/log/daemon.log" | tail -n 100 |
  awk 'function ms(s) { if (s ~ /µs$/) return s / 1000; if (s ~ /ms$/) return s + 0; return s * 1000 } {print ms($1) + ms($2)}' |
  sort -n | awk '{a[NR]=$1} END {printf "| swap of hydrated generations: p50, p99 (ms) | %.1f, %.1f | | | p99 ≤ 50 |\n", a[int(NR*.5)], a[int(NR*.99)]}'
