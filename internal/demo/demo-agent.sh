#!/usr/bin/env bash
# An agent's story on one machine: it waits for a window, activates, proves what it shows, takes back what
# fails, works without its origin, and is killed.
source "$(dirname "$0")/lib.sh"
AGENT=
leave() {
  status=$?
  set +e
  [ -z "$AGENT" ] || kill -INT "$AGENT" 2>/dev/null
  [ -z "$AGENT" ] || wait "$AGENT" 2>/dev/null
  [ $status = 0 ] || tail -n 20 "$WORK/agent.log"
  (exit $status)
  cleanup
}
trap leave EXIT

agent() { "$COPPICE" agent --config "$WORK/agent.yaml" 2>>"$WORK/agent.log" & AGENT=$!; }
phase() { "$COPPICE" status "$MNT" 2>/dev/null | sed -n 's/^ *agent *\([A-Za-z]*\) .*/\1/p'; }
# The settings of the machine's layer, one line.
configure() {
  cat >"$WORK/agent.yaml" <<YAML
id: demo
origins: [$URL]
trust: $WORK/origin/ref/trust/root
state: $WORK/state
spool: $WORK/spool
mounts:
  - {channel: app/stable, dir: $MNT, poll: 1s, probes: [{name: runs, command: [./run]}]}
policy:
  - {level: endpoint, name: demo, seq: 1, settings: }
YAML
  sed -i "s|settings: .*|settings: $1}|" "$WORK/agent.yaml"
}
publish() { # N STATUS: version N, whose program ends with STATUS
  mkdir -p "$WORK/v$1"
  printf '#!/bin/sh\necho version %s\nexit %s\n' "$1" "$2" >"$WORK/v$1/run"
  chmod +x "$WORK/v$1/run"
  run -q tree import app "$WORK/v$1"
  run -q namespace publish app -f "$WORK/app.yaml"
}

say "an origin with three versions; the second does not run"
export COPPICE_ORIGIN=$WORK/origin
printf 'mounts:\n  - {path: /, tree: app}\n' >"$WORK/app.yaml"
run origin init "$WORK/origin"
publish 1 0; publish 2 1; publish 3 0
run channel set app/stable app@1
serve "$WORK/origin"

say "outside its window the agent fetches and waits, and says until when"
other=$(LC_ALL=C date -d '+3 days' +%a)
configure "{windows: [{days: [$other], start: \"03:00\", duration: 1h, zone: UTC}]}"
run agent check --config "$WORK/agent.yaml"
agent
await Gated phase
run explain "$MNT"

say "a person may hurry it"
run update now "$MNT"
await Healthy phase
await "version 1" "$MNT/run"

say "the window is opened (SIGHUP), and a version fails its probe"
configure "{}"
kill -HUP "$AGENT"
run channel set app/stable app@2
await Reverted phase
await "version 1" "$MNT/run"
run status "$MNT"

say "the origin goes; the agent is killed, and started again"
kill "$SERVER"; wait "$SERVER" 2>/dev/null || true; SERVER=
kill -KILL "$AGENT"; wait "$AGENT" 2>/dev/null || true
# HOOK: a holder of the mount's descriptor would keep readers going here.
agent
await "version 1" "$MNT/run"

say "the origin is back with a third version"
run channel set app/stable app@3
"$COPPICE" origin serve "$WORK/origin" --listen "${URL#http://}" 2>/dev/null & SERVER=$!
await "version 3" "$MNT/run"
await Healthy phase
run status "$MNT"
cat "$WORK"/spool/*.json
