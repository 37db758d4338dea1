#!/usr/bin/env bash
# The main job, with the Go toolchain as the tree: import, publish, serve, mount, compile from the
# mount, patch, swap while the compiler runs, roll back.
source "$(dirname "$0")/lib.sh"
GOROOT_SRC=$(go env GOROOT)
unset GOROOT GOFLAGS
export GOTOOLCHAIN=local GO111MODULE=off CGO_ENABLED=0

say "an origin, and the Go toolchain as the first version of a tree"
run origin init "$WORK/origin" </dev/null
export COPPICE_ORIGIN=$WORK/origin
time run tree import go "$GOROOT_SRC"

say "a namespace version, and a channel that points at it"
printf 'mounts:\n  - path: /\n    tree: go\n' >"$WORK/dev.yaml"
run namespace publish dev -f "$WORK/dev.yaml"
run channel set dev/stable dev@1 --reason "first"

say "serve it, and mount it on an endpoint"
serve "$WORK/origin"
time run mount dev/stable "$MNT" --origin "$URL"
run status "$MNT"

say "compile and run a program with the compiler on the mount"
mkdir "$WORK/src"
cat >"$WORK/src/main.go" <<'GO'
package main

import "io"

func main() { print(io.EOF.Error(), "\n") }
GO
# compile CACHE: builds with the toolchain on the mount and prints what the program says.
compile() { (cd "$WORK/src" && GOCACHE=$1 "$MNT/bin/go" build -o "$1.out" main.go && "$1.out" 2>&1); }
time compile "$WORK/gocache1"

say "patch one file of a copy and publish it as version 2"
mkdir "$WORK/patched"
cp -a "$GOROOT_SRC/." "$WORK/patched"
sed -i 's/errors.New("EOF")/errors.New("EOF, patched")/' "$WORK/patched/src/io/io.go"
time run tree import go "$WORK/patched"
run tree diff go@1 go@2 || [ $? = 3 ]
run namespace publish dev -f "$WORK/dev.yaml"

say "swap while the compiler runs in a loop"
loop() {
  n=0
  while [ ! -e "$WORK/stop" ]; do
    (cd "$WORK/src" && GOCACHE=$WORK/gocacheL "$MNT/bin/go" build -a -o "$WORK/loop.out" main.go) || { echo failed >>"$WORK/failures"; }
    n=$((n + 1)); echo $n >"$WORK/builds"
  done
}
loop & LOOP=$!
sleep 3
run channel set dev/stable dev@2 --reason "patched"
await 'var EOF = errors.New("EOF, patched")' grep '^var EOF' "$MNT/src/io/io.go"
[ "$(compile "$WORK/gocache2")" = "EOF, patched" ]
run status "$MNT"

say "roll back"
run channel rollback dev/stable --reason "a demo"
await 'var EOF = errors.New("EOF")' grep '^var EOF' "$MNT/src/io/io.go"
[ "$(compile "$WORK/gocache3")" = "EOF" ]
touch "$WORK/stop"; wait $LOOP; LOOP=
[ ! -e "$WORK/failures" ] || { echo "builds failed during the swaps"; exit 1; }
echo "$(cat "$WORK/builds") builds in the loop, none failed"
run channel log dev/stable

say "done: every byte was verified, nothing was installed"
run unmount "$MNT"
