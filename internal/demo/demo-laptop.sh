#!/usr/bin/env bash
# A laptop's story on one machine, in network namespaces of their own: it holds a Debian tree, leaves the
# network and works, comes back over a slow link, receives a patch as differences, leaves again and goes back.
source "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "debootstrap and network namespaces need root"; exit 1; }
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
SECURITY=${SECURITY:-http://deb.debian.org/debian-security}
OFFICE=cop-office-$$ LAPTOP=cop-laptop-$$ OLD=$WORK/old
OFFICE_URL=http://10.79.0.2:8000 SLOW_URL=http://10.79.0.2:8001
mkdir "$OLD"
JOBS=()

# In the background, so that its process is the program's.
office() { exec nsenter --net="/run/netns/$OFFICE" "$@"; }
laptop() { nsenter --net="/run/netns/$LAPTOP" "$@"; }
leave() {
  status=$?
  set +e
  "$COPPICE" unmount --force "$OLD" 2>/dev/null
  "$COPPICE" unmount --force "$MNT" 2>/dev/null
  [ ${#JOBS[@]} = 0 ] || kill "${JOBS[@]}" 2>/dev/null
  ip netns del "$LAPTOP" 2>/dev/null
  ip netns del "$OFFICE" 2>/dev/null
  (exit $status)
  cleanup
}
trap leave EXIT

# A fixed set of programs; it prints how long they took.
work() {
  s=$(date +%s.%N)
  chroot "$1" python3 -c 'import json, ssl, sqlite3, email, decimal; print("python", json.dumps(ssl.OPENSSL_VERSION))'
  chroot "$1" perl -MPOSIX -e 'print "perl $^V\n"'
  chroot "$1" sh -c 'find / -xdev -type f | wc -l'
  tar -C "$1" -cf - . | wc -c
  echo "took $(echo "$(date +%s.%N) - $s" | bc) s"
}
fetched() { "$COPPICE" status "$MNT" --json | sed -n 's/.*"fetched_bytes": \([0-9]*\).*/\1/p' | head -1; }
shown() { "$COPPICE" status "$MNT" | sed -n 's/^ *active *\([^ ]*\).*/\1/p' | head -1; }
linked() { "$COPPICE" status "$MNT" --json | sed -n 's/.*"state": "\(online\|offline\|unreachable\)".*/\1/p' | head -1; }

say "an office with an origin, and a laptop, joined by a cable"
debootstrap --variant=minbase --include=python3 "$SUITE" "$WORK/debian" "$MIRROR" >"$WORK/debootstrap.log" 2>&1 ||
  { tail "$WORK/debootstrap.log"; exit 1; }
rm -f "$WORK"/debian/var/cache/apt/archives/*.deb
export COPPICE_ORIGIN=$WORK/origin
run origin init "$WORK/origin"
run -q tree import debian "$WORK/debian"
printf 'mounts:\n  - {path: /, tree: debian}\n' >"$WORK/os.yaml"
run namespace publish os -f "$WORK/os.yaml"
run channel set os/stable os@1
ip netns add "$OFFICE"
ip netns add "$LAPTOP"
ip -n "$OFFICE" link add cable type veth peer name eth0 netns "$LAPTOP"
ip -n "$OFFICE" addr add 10.79.0.2/24 dev cable
ip -n "$LAPTOP" addr add 10.79.0.1/24 dev eth0
for n in "$OFFICE" "$LAPTOP"; do ip -n "$n" link set lo up; done
ip -n "$OFFICE" link set cable up
ip -n "$LAPTOP" link set eth0 up
office "$COPPICE" origin serve "$WORK/origin" --listen 10.79.0.2:8000 2>>"$WORK/serve.log" &
JOBS+=($!) FAST=$!
office "$COPPICE" origin serve "$WORK/origin" --listen 127.0.0.1:8002 2>>"$WORK/serve.log" &
JOBS+=($!)
mkfifo "$WORK/slow.in"
exec 9<>"$WORK/slow.in" # slowlink ends with its input
office bin/slowlink -listen 10.79.0.2:8001 -upstream 127.0.0.1:8002 -rtt 80ms -mbit 20 <&9 >/dev/null &
JOBS+=($!)
await ok laptop curl -sf "$OFFICE_URL/healthz"

say "pin everything, fetch it, ask before leaving"
run_laptop() { printf '$ coppice %s\n' "$*"; laptop "$COPPICE" "$@"; }
run_laptop mount os/stable "$MNT" --origin "$OFFICE_URL" --origin "$SLOW_URL" --suid --dev
run cache pin "$MNT" --all
run cache hydrate "$MNT"
run cache ready "$MNT"
work "$MNT"

say "the cable is pulled: everything works"
ip -n "$LAPTOP" link set eth0 down
await offline linked
work "$MNT"
run status "$MNT"

say "meanwhile the tree is patched, once, and published with what an endpoint needs of it"
run -q tree patch debian --env DEBIAN_FRONTEND=noninteractive -- sh -ec "
  echo 'deb $SECURITY $SUITE-security main' >>/etc/apt/sources.list
  apt-get -qq update && apt-get -yqq upgrade >/dev/null && apt-get clean
  rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin" 2>"$WORK/patch.log" || { tail "$WORK/patch.log"; exit 1; }
run namespace publish os -f "$WORK/os.yaml" --deltas
run channel set os/stable os@2
kill "$FAST" # from home, the office is only there by the slow link
had=$(fetched)

say "home: the slow link alone. The patch is completed beside what runs, then shown as a whole"
s=$(date +%s.%N)
ip -n "$LAPTOP" link set eth0 up
for _ in $(seq 600); do [ "$(shown)" = os@2 ] && break; sleep 0.2; done
[ "$(shown)" = os@2 ] || { run status "$MNT"; exit 1; }
echo "os@2 is active after $(echo "$(date +%s.%N) - $s" | bc) s, $(($(fetched) - had)) bytes fetched"
run cache ready "$MNT"
run tree verify debian@2 "$MNT"

say "gone again; the version before is still here"
ip -n "$LAPTOP" link set eth0 down
await offline linked
work "$MNT"
run_laptop mount os@1 "$OLD" --origin "$OFFICE_URL" --origin "$SLOW_URL" --suid --dev
run tree verify debian@1 "$OLD"
work "$OLD"

say "done: a laptop that left the network noticed nothing"
