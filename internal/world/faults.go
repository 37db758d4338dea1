package world

import (
	"time"

	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/policy"
)

func (m *machine) fetchEnds() {
	m.fetching = false
	v := m.w.index(m.fetch.Target.Content)
	switch {
	case m.f.Link == policy.OfflineLink || m.now < quiet && m.dice.one(20):
		code := []endpoint.Code{endpoint.Unreachable, endpoint.NotFound, endpoint.BadContent, endpoint.NoFit}[m.dice.in(4)]
		m.f.FetchFailed = endpoint.Failure{Of: m.fetch.Target.Manifest, Attempt: m.fetch.Attempt, At: m.local(), Code: code, Detail: "world"}
		m.check.fails(0, v)
		m.trace("fetch of %d fails: %s", v, code)
	default:
		m.content |= 1 << v
		m.trace("has %d", v)
	}
	m.think(nil)
}

func (m *machine) probeEnds() {
	m.probing = false
	v := endpoint.Verdict{Of: m.probe.Target.Manifest, Attempt: m.probe.Attempt}
	bad := fine
	if m.serving >= 0 {
		bad = m.w.badOn(m.serving, m.index)
	}
	switch {
	case m.f.Serving != v.Of || bad == hangs || bad == restarts:
		return // no verdict: the world's probe looks at what is mounted, or never comes back
	case bad == failsProbe || m.now < quiet && m.dice.one(500):
		v.Failed, v.Reason = true, "world"
	default:
		v.Passed = true
		m.check.passes(m.serving)
	}
	m.trace("probe of %d: %t", m.serving, v.Passed)
	m.f.Probe = v
	m.think(nil)
}

// sleep closes or opens the lid. Whatever was to happen meanwhile happens afterwards.
func (m *machine) sleep() {
	m.asleep = !m.asleep
	if !m.asleep {
		m.trace("wakes")
		m.slept += m.now - m.dozed
		m.check.began += m.now - m.dozed
		if m.at[poll] > m.now+time.Minute {
			m.at[poll] = m.now + m.dice.between(0, time.Minute)
		}
		if m.now < quiet {
			m.at[doze] = m.now + m.dice.between(time.Hour, 12*time.Hour)
		}
		m.think(nil)
		return
	}
	if m.now >= quiet {
		m.asleep = false
		return
	}
	m.dozed = m.now
	until := m.now + m.dice.between(time.Minute, 8*time.Hour)
	if m.dice.one(8) {
		until, m.away = dayEnd, true
	}
	m.trace("sleeps until %s", until)
	m.at[deliver] = never // nobody heard the hint
	for i := range m.at {
		m.at[i] = max(m.at[i], until)
	}
	m.at[doze] = until
	if m.at[poll] == never {
		m.at[poll] = until
	}
}

// relink changes the link; in the quiet hours to one that works, except for a few.
func (m *machine) relink() {
	was := m.f.Link
	m.f.Link = policy.Link(m.dice.in(5))
	if m.now < quiet {
		m.at[linkUp] = m.now + m.dice.between(10*time.Minute, 6*time.Hour)
	} else if m.f.Link == policy.OfflineLink {
		m.away = true
	}
	if m.f.Link != policy.OfflineLink && was == policy.OfflineLink {
		m.f.ReachableSince = m.local()
		m.at[poll] = min(m.at[poll], m.now+m.dice.between(0, time.Minute))
	}
	m.trace("link %s", m.f.Link)
	m.think(nil)
}

// ask has a person put the change off, or want it now.
func (m *machine) ask() {
	if m.asleep {
		return
	}
	m.at[person] = m.now + m.dice.between(time.Hour, 12*time.Hour)
	var s endpoint.State
	var err error
	if t := &m.ram.Desired; m.ram.Phase == endpoint.Reverted && m.dice.one(2) {
		if s, err = m.ram.Allow(t.Manifest); err == nil {
			m.check.allows(m.w.index(t.Content))
		}
	} else if m.dice.one(2) {
		if s, err = m.ram.HurryUp(m.local()); err == nil {
			m.check.hurried()
		}
	} else {
		sev := endpointSeverity(m)
		d := m.dice.between(time.Minute, 10*time.Hour)
		q := policy.Question{Facts: &m.f.Facts, Pending: m.ram.Pending, Staged: m.ram.Ready}
		if s, err = m.ram.Defer(d, m.p.For(sev), &q, m.local()); err == nil {
			m.check.defers(m.local().Add(d))
		}
	}
	if err == nil {
		m.trace("a person asks; deferred until %s, hurry %t", s.Deferred, s.Hurry)
		m.check.keeps(&m.disk, &s)
		m.ram, m.disk = s, s
		m.think(nil)
	}
}

// loopsMax is how often a version takes a machine down; then its user has found a way to work.
const loopsMax = 12

// goWrong does one of the rarer things.
func (m *machine) goWrong() {
	if m.asleep {
		return
	}
	if m.serving >= 0 && m.w.badOn(m.serving, m.index) == restarts && m.loops < loopsMax {
		m.loops++
		m.reboot("the version takes the machine down")
		m.at[fault] = m.now + m.dice.between(40*time.Second, 90*time.Second)
		return
	}
	if m.now >= quiet {
		m.skew = 0 // somebody sets the clock at last
		m.think(nil)
		return
	}
	m.at[fault] = m.now + m.dice.between(time.Hour, 10*time.Hour)
	switch m.dice.in(6) {
	case 0:
		m.reboot("power")
	case 1:
		m.crash("killed")
	case 2:
		m.content &= m.check.pinned() // the cache is dropped, but for what runs or ran
		m.trace("the cache is dropped")
		m.think(nil)
	case 3:
		if m.skew == 0 {
			m.skew = m.dice.between(-9000*time.Hour, 9000*time.Hour)
			if m.dice.one(2) {
				m.skew /= 4000
			}
		} else {
			m.skew = 0
		}
		m.check.skewed = true
		m.at[fault] = min(m.at[fault], max(quiet, m.now))
		m.trace("the clock is off by %s", m.skew)
		m.think(nil)
	case 4:
		m.snap = snapshot{true, m.disk, m.held, m.content, m.serving, m.check}
		m.trace("a snapshot is taken")
	case 5:
		m.putBack()
	}
}

// putBack restores the snapshot.
func (m *machine) putBack() {
	if !m.snap.taken {
		m.snap = snapshot{true, m.disk, m.held, m.content, m.serving, m.check}
		return
	}
	m.r.Crashes++
	skewed := m.check.skewed
	m.disk, m.held, m.content, m.serving, m.check = m.snap.disk, m.snap.held, m.snap.content, m.snap.serving, m.snap.check
	m.check.skewed = skewed
	m.check.restored()
	m.ram = m.disk
	m.forgetWork()
	m.f.Machine++
	m.f.Confirmed = false
	m.trace("is put back to a snapshot: seq %d", m.disk.Seq)
	m.at[poll] = m.now + m.dice.between(0, 20*time.Minute)
	m.think(nil)
}

// forgetWork drops what only the agent's memory knew.
func (m *machine) forgetWork() {
	m.fetching, m.asking, m.probing = false, false, false
	m.check.failed[0].at, m.check.failed[1].at = 0, 0
	m.at[fetched], m.at[granted], m.at[probed], m.at[wake] = never, never, never, never
	m.f.FetchFailed, m.f.ShowFailed, m.f.Probe, m.f.Slot = endpoint.Failure{}, endpoint.Failure{}, endpoint.Verdict{}, policy.Slot{}
}

// crash ends the agent; the mount may live on. It is started again.
func (m *machine) crash(why string) {
	if m.dice.one(3) {
		m.reboot(why)
		return
	}
	m.r.Crashes++
	m.trace("crashes: %s", why)
	m.ram = m.disk
	m.forgetWork()
	if m.dice.one(2) {
		m.serving = -1
	}
	m.at[wake] = m.now + m.dice.between(time.Second, 20*time.Second)
}

// reboot restarts the machine.
func (m *machine) reboot(why string) {
	m.r.Crashes++
	if m.serving >= 0 {
		m.check.boots++
	}
	m.trace("restarts: %s", why)
	m.ram = m.disk
	m.forgetWork()
	m.f.Boot++
	m.booted, m.slept = m.now, 0
	m.serving = -1
	m.at[wake] = m.now + m.dice.between(10*time.Second, 2*time.Minute)
}
