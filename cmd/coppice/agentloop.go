package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/agent"
	mind "coppice.dev/coppice/rollout/endpoint"
	reports "coppice.dev/coppice/rollout/report"
)

// agentView is what the agent tells of a mount.
type agentView struct {
	State   mind.State       `json:"state"`
	Explain mind.Explanation `json:"explain"`
	Error   string           `json:"error,omitempty"`
}

func (e *endpoint) agentView() *agentView {
	if e.loop == nil {
		return nil
	}
	s := e.loop.Status()
	return &agentView{s.State, e.loop.Explain(), s.LastError}
}

func (v *agentView) print(w io.Writer) {
	s := &v.State
	line := s.Phase.String() + " since " + when(s.Since)
	if s.Code != "" || s.Detail != "" {
		line += ": " + strings.TrimSpace(string(s.Code)+" "+s.Detail)
	}
	field(w, "agent", line)
	if !s.Desired.IsZero() {
		field(w, "wanted", fmt.Sprintf("%s  seq %d", s.Desired.Version, s.Desired.Seq))
	}
	if !v.Explain.Done() {
		field(w, "waits", v.Explain.Sentence)
	}
	for _, d := range s.Denied {
		field(w, "denied", fmt.Sprintf("%s since %s: %s", d.Version, when(d.At), d.Reason))
	}
	field(w, "error", v.Error)
}

// startLoop makes the agent's loop, which run runs.
func (e *endpoint) startLoop() error {
	latest := make(chan agent.Status, 1)
	notify := func(s agent.Status) { // the loop is the only one who sends
		select {
		case <-latest:
		default:
		}
		latest <- s
	}
	loop, err := e.newLoop(notify)
	if err != nil {
		return err
	}
	e.loop = loop
	e.work.Go(func() { e.reportAll(latest) })
	e.work.Go(func() {
		for {
			select {
			case <-e.ctx.Done():
				return
			case <-e.link.wake:
				loop.Hint()
			}
		}
	})
	return nil
}

// reportEvery is how often a report is written though nothing changed, and reportWithin what it
// promises: a few may be lost.
const (
	reportEvery  = time.Minute
	reportWithin = 5 * time.Minute
)

// reportAll keeps the mount's report up to date, until the mount is gone.
func (e *endpoint) reportAll(latest <-chan agent.Status) {
	var told agent.Status
	var at time.Time
	for {
		var s agent.Status
		select {
		case <-e.ctx.Done():
			return
		case s = <-latest:
		}
		same := s.State.Phase == told.State.Phase && s.State.Seq == told.State.Seq && s.State.Attempt == told.State.Attempt &&
			s.State.Active == told.State.Active && len(s.State.Denied) == len(told.State.Denied) && s.LastError == told.LastError
		if e.req.Agent.Report == "" || same && time.Since(at) < reportEvery {
			continue
		}
		if err := e.writeReport(s); err != nil {
			e.log.Warn("no report", "error", err)
			continue
		}
		told, at = s, time.Now()
	}
}

func (e *endpoint) writeReport(s agent.Status) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	var up unix.Timespec // rises from one report to the next, also when the daemon is another
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Second)
	c := reports.Channel{Channel: e.req.Target, Dir: e.req.Dir, Seq: s.State.Seq, Phase: s.State.Phase, Code: s.State.Code, Detail: s.State.Detail,
		LastError: clipText(s.LastError), Active: s.State.Active, Desired: s.State.Desired, LastGood: s.State.LastGood, Conditions: s.Condition,
		Denied: s.State.Denied[max(0, len(s.State.Denied)-reports.DeniedMax):]}
	for i := range c.Conditions {
		c.Conditions[i].Message = clipText(c.Conditions[i].Message)
	}
	r := reports.Report{Endpoint: e.req.Agent.ID, Boot: strings.TrimSpace(string(boot)), Counter: uint64(up.Nano()), At: now, NextBy: now.Add(reportWithin),
		Channels: []reports.Channel{c}}
	b, err := r.Encode()
	if err != nil {
		return err
	}
	return disk.Replace(e.req.Agent.Report, b, 0o644)
}

func clipText(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), reports.TextBytesMax)], "")
}

// agentRequest is what a person asks of the agent, for one mount or for all.
type agentRequest struct {
	Dir     string        `json:"dir,omitempty"`
	Verb    string        `json:"verb"` // "now", "defer", "allow" or "explain"
	For     time.Duration `json:"for,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Version string        `json:"version,omitempty"`
}

// agentReply is the answer for one mount.
type agentReply struct {
	Dir     string           `json:"dir"`
	Channel string           `json:"channel"`
	Explain mind.Explanation `json:"explain"`
}

// agent serves what people ask of the agent. Mounts that it is no matter of are passed over, but one
// has to be.
func (d *daemon) agent(_ context.Context, req agentRequest) ([]agentReply, error) {
	all := []agentReply{}
	var refused error
	for _, e := range d.endpoints() {
		if e.loop == nil || req.Dir != "" && e.req.Dir != req.Dir {
			continue
		}
		if err := e.asked(req); err != nil {
			refused = err
			if namespace.IsKind(err, namespace.NotExist) {
				continue
			}
			return nil, err
		}
		all = append(all, agentReply{e.req.Dir, e.req.Target, e.loop.Explain()})
	}
	if len(all) == 0 && refused == nil {
		refused = namespace.WithHint(namespace.E(namespace.NotExist, req.Verb, req.Dir, errors.New("no mount of the agent")), "`coppice status` lists them")
	}
	if len(all) == 0 {
		return nil, refused
	}
	return all, nil
}

func (e *endpoint) asked(req agentRequest) error {
	switch req.Verb {
	case "explain":
		return nil
	case "now":
		e.loop.Hint()
		return e.loop.Now()
	case "defer":
		err := e.loop.Defer(req.For)
		if err == nil {
			e.log.Info("put off by a person", "for", req.For, "reason", req.Reason)
		}
		return err
	case "allow":
		v, err := namespace.ParseVersion(req.Version)
		if err != nil {
			return err
		}
		return e.loop.Allow(v)
	}
	return namespace.E(namespace.Invalid, "ask agent", req.Verb, errors.New("not understood"))
}
