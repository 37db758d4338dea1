#!/usr/bin/env bash
# The main job with an operating system: a Debian tree is mounted, entered with chroot, patched,
# swapped and rolled back.
source "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "debootstrap and chroot need root"; exit 1; }
SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}

say "a Debian tree"
debootstrap --variant=minbase --include=python3 "$SUITE" "$WORK/debian" "$MIRROR" >"$WORK/debootstrap.log" 2>&1 ||
  { tail "$WORK/debootstrap.log"; exit 1; }
rm -f "$WORK"/debian/var/cache/apt/archives/*.deb
echo "$(find "$WORK/debian" -xdev | wc -l) entries, $(du -shx "$WORK/debian" | cut -f1)"

say "import, publish, serve, mount"
run origin init "$WORK/origin"
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

say "patch, swap, roll back"
rm "$WORK/debian/etc/os-release" # it is a symlink into /usr/lib
echo 'PRETTY_NAME="Debian, patched once"' >"$WORK/debian/etc/os-release"
time run tree import debian "$WORK/debian"
run tree diff debian@1 debian@2 || [ $? = 3 ]
run namespace publish os -f "$WORK/os.yaml"
run channel set os/stable os@2
await 'PRETTY_NAME="Debian, patched once"' grep PRETTY_NAME "$MNT/etc/os-release"
run channel rollback os/stable
await "" grep "patched once" "$MNT/etc/os-release"
run status "$MNT"
run unmount "$MNT"
