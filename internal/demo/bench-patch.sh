#!/usr/bin/env bash
# Measures patching: a Debian tree without security updates, upgraded by apt-get in a transaction, and
# what an endpoint fetches for it; prints the rows of docs/PERFORMANCE.md. V1=DIR uses a tree that is
# there; else one is made with debootstrap. INCLUDE=LIST chooses its packages.
source "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "debootstrap and apt-get need root"; exit 1; }
INCLUDE=${INCLUDE:-ca-certificates,python3,python3-numpy,perl,git,gcc,libc6-dev,vim,emacs-nox,curl,openssl,nodejs,postgresql}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
SECURITY=${SECURITY:-http://deb.debian.org/debian-security}

secs() { local s; s=$(date +%s.%N); "$@" >/dev/null; since "$s"; }
since() { echo "$(date +%s.%N) - $1" | bc; }
median() { sort -n | awk '{a[NR]=$1} END {print a[int((NR+1)/2)]}'; }
mb() { echo "scale=2; $1 / 1000000" | bc; }
row() { printf '| %s | %s | %s |\n' "$@"; }
fetched() { "$COPPICE" status "$MNT" --json | sed -n 's/.*"fetched_bytes": \([0-9]*\).*/\1/p'; }
rss() { awk '/RssAnon/ {print int($2 / 1024)}' "/proc/$(pgrep -f "coppice daemon --cache $COPPICE_CACHE" | head -1)/status"; }

if [ -z "${V1:-}" ]; then
  V1=$WORK/v1
  debootstrap --include="$INCLUDE" bookworm "$V1" "$MIRROR" >"$WORK/debootstrap.log" 2>&1 || { tail "$WORK/debootstrap.log"; exit 1; }
  rm -f "$V1"/var/cache/apt/archives/*.deb
fi
echo "tree: $(find "$V1" -xdev | wc -l) entries, $(du -smx "$V1" | cut -f1) MB; $(nproc) cores, Linux $(uname -r), $(go version | cut -d' ' -f3)"

export COPPICE_ORIGIN=$WORK/origin XDG_CACHE_HOME=$WORK/xdg
"$COPPICE" origin init "$WORK/origin" >/dev/null
cp -a "$V1" "$WORK/tree"
full=$(secs "$COPPICE" -q tree import debian "$WORK/tree")
cat >"$WORK/upgrade" <<'EOF'
set -e
echo "deb $SECURITY bookworm-security main" >>/etc/apt/sources.list
apt-get -qq update && apt-get -yqq upgrade && apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
sync -f /; date +%s.%N >/mnt/end
EOF
"$COPPICE" -q tree patch debian --env DEBIAN_FRONTEND=noninteractive --env SECURITY="$SECURITY" --bind "$WORK:/mnt" -- sh /mnt/upgrade >"$WORK/patch.log" 2>&1 ||
  { tail "$WORK/patch.log"; exit 1; }
commit=$(since "$(cat "$WORK/end")")
changes=$("$COPPICE" tree diff debian@1 debian@2 --stat | tail -1) || [ $? = 3 ]
echo "patch: $changes"
echo
echo '| what | measured | target |'
echo '|---|---|---|'
row 'commit of `apt-get upgrade`, after the command ended (s)' "$commit" '≤ 2'
row 'one-file `tree patch` (s)' "$(for i in 1 2 3; do secs "$COPPICE" -q tree patch debian -- sh -c "echo $i >/etc/motd"; done | median)" 'about 1'
row '`tree patch` that changes nothing (s)' "$(for i in 1 2 3; do secs "$COPPICE" -q tree patch debian -- true; done | median)" '≤ 0.3'

"$COPPICE" -q tree export debian@2 "$WORK/v2/" >/dev/null
rsync -aHAX --delete "$WORK/v2/" "$WORK/tree/"
row 'first import of the whole directory (s)' "$full" ''
row 'update by re-import of the whole directory, changed in place (s)' "$(secs "$COPPICE" -q tree import debian "$WORK/tree")" '≤ 3'
row 'the same with nothing changed (s)' "$(secs "$COPPICE" -q tree import debian "$WORK/tree")" ''
rm -rf "$WORK/v2" "$WORK/tree"

for v in 1 2; do
  printf 'mounts:\n  - {path: /, tree: debian@%d}\n' $v >"$WORK/os.yaml"
  "$COPPICE" -q namespace publish os -f "$WORK/os.yaml" >/dev/null
done
"$COPPICE" channel set os/x os@1 >/dev/null
serve "$WORK/origin" >/dev/null
/usr/bin/time -f '%e %M' -o "$WORK/time" "$COPPICE" -q tree delta debian@2 >/dev/null
read -r took peak <"$WORK/time"
row '`tree delta`: time (s)' "$took" '≤ 60'
row '`tree delta`: peak memory (MB)' "$((peak / 1024))" '≤ 1024'
"$COPPICE" -q mount os/x "$MNT" --origin "$URL" >/dev/null
"$COPPICE" cache hydrate "$MNT" >/dev/null
had=$(fetched)
"$COPPICE" channel set os/x os@2 >/dev/null
active() { "$COPPICE" status "$MNT" --json | tr -d '\n' | sed -n 's/.*"active": { *"version": "\([^"]*\)".*/\1/p'; }
await os@2 active
row 'hydrate version 2 on top of 1 (s)' "$(secs "$COPPICE" cache hydrate "$MNT")" ''
row 'fetched for it (MB)' "$(mb $(($(fetched) - had)))" '≤ 7.5'
row 'daemon after it, RssAnon (MB)' "$(rss)" '≤ 256'
