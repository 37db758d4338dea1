#!/usr/bin/env bash
# The main job with an operating system: a Debian tree is mounted, entered with chroot, patched with
# apt-get, swapped and rolled back.
source "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "debootstrap and chroot need root"; exit 1; }
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
SECURITY=${SECURITY:-http://deb.debian.org/debian-security}
fetched() { "$COPPICE" status "$MNT" --json | sed -n 's/.*"fetched_bytes": \([0-9]*\).*/\1/p'; }

say "a Debian tree"
debootstrap --variant=minbase --include=python3 "$SUITE" "$WORK/debian" "$MIRROR" >"$WORK/debootstrap.log" 2>&1 ||
  { tail "$WORK/debootstrap.log"; exit 1; }
rm -f "$WORK"/debian/var/cache/apt/archives/*.deb
echo "$(find "$WORK/debian" -xdev | wc -l) entries, $(du -shx "$WORK/debian" | cut -f1)"

say "import, publish, serve, mount"
run origin init "$WORK/origin" </dev/null
export COPPICE_ORIGIN=$WORK/origin
time run tree import debian "$WORK/debian"
printf 'mounts:\n  - {path: /, tree: debian}\n' >"$WORK/os.yaml"
run namespace publish os -f "$WORK/os.yaml"
run channel set os/stable os@1
serve "$WORK/origin"
time run mount os/stable "$MNT" --origin "$URL" --suid --dev

say "run programs from the mount"
chroot "$MNT" python3 -c 'import sys, json; print("python", sys.version.split()[0], "from", sys.executable)'
chroot "$MNT" perl -e 'print "perl $^V\n"'

say "the mount is the tree: rsync and dpkg find no difference"
if command -v rsync >/dev/null; then
  diff=$(rsync -naicHAX --delete "$WORK/debian/" "$MNT/")
  [ -z "$diff" ] || { echo "$diff" | head; exit 1; }
  echo "rsync -naicHAX --delete: nothing"
fi
chroot "$WORK/debian" dpkg --verify >"$WORK/verify.native" || true
chroot "$MNT" dpkg --verify >"$WORK/verify.mount" || true
cmp "$WORK/verify.native" "$WORK/verify.mount"
echo "dpkg --verify: $(wc -l <"$WORK/verify.mount") lines, the same in both"

say "hold all of it, then patch the tree: once, in a transaction"
run cache hydrate "$MNT"
had=$(fetched)
time run -q tree patch debian --env DEBIAN_FRONTEND=noninteractive -- sh -ec "
  echo 'deb $SECURITY $SUITE-security main' >>/etc/apt/sources.list
  apt-get -qq update && apt-get -yqq upgrade >/dev/null && apt-get clean
  rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
  rm /etc/os-release && echo 'PRETTY_NAME=\"Debian, patched once\"' >/etc/os-release" 2>"$WORK/patch.log" ||
  { tail "$WORK/patch.log"; exit 1; }
run tree diff debian@1 debian@2 --package --stat || [ $? = 3 ]
run where 'libc6'

say "store differences, publish, swap: the endpoint fetches little"
time run tree delta debian@2
run namespace publish os -f "$WORK/os.yaml"
run channel set os/stable os@2
await 'PRETTY_NAME="Debian, patched once"' grep PRETTY_NAME "$MNT/etc/os-release"
time run cache hydrate "$MNT"
echo "fetched for version 2: $(($(fetched) - had)) bytes"
run tree verify debian@2 "$MNT"

say "roll back; what would un-patch is refused"
run channel rollback os/stable
await "" grep "patched once" "$MNT/etc/os-release"
printf 'mounts:\n  - {path: /, tree: debian@1}\n' >"$WORK/older.yaml"
run namespace publish os -f "$WORK/older.yaml" || [ $? = 14 ]
run status "$MNT"
run unmount "$MNT"
