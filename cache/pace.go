package cache

import (
	"context"
	"sync"
	"time"
)

// urgency lets what somebody waits for go before what is fetched ahead: as long as the first frame of a
// miss is on its way, the others' requests take nothing more off the link. Safe for concurrent use; the
// zero value is idle.
type urgency struct {
	mu      sync.Mutex
	waiting int
	idle    chan struct{} // closed when nobody waits any more; nil: nobody does
	last    time.Time     // when somebody waited last
}

// yieldMax bounds a pause, so that a link that is always wanted still brings the rest.
const yieldMax = 500 * time.Millisecond

// begin says that somebody waits, until done is called; further calls of done do nothing.
func (u *urgency) begin() (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting++; u.idle == nil {
		u.idle = make(chan struct{})
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			u.mu.Lock()
			defer u.mu.Unlock()
			u.last = time.Now()
			if u.waiting--; u.waiting == 0 {
				close(u.idle)
				u.idle = nil
			}
		})
	}
}

// yield waits until nobody waits, for yieldMax at most, and says how long that was.
func (u *urgency) yield(ctx context.Context) time.Duration {
	u.mu.Lock()
	idle := u.idle
	u.mu.Unlock()
	if idle == nil {
		return 0
	}
	start := time.Now()
	limit := time.NewTimer(yieldMax)
	defer limit.Stop()
	select {
	case <-idle:
	case <-limit.C:
	case <-ctx.Done():
	}
	return time.Since(start)
}

// quietFor is how long nobody must have waited for it to be quiet, quietMax how long that is waited for.
const (
	quietFor = 300 * time.Millisecond
	quietMax = 10 * time.Second
)

// Quiet returns when reads have not waited for the network for a moment, at once if none has, and after
// some seconds in any case: then is the time for what nobody asked for.
func (r *Reader) Quiet(ctx context.Context) {
	end := time.Now().Add(quietMax)
	for pause := r.urgent.quietIn(); pause > 0 && time.Now().Before(end); pause = r.urgent.quietIn() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// quietIn returns how long it takes at least until it is quiet.
func (u *urgency) quietIn() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting > 0 {
		return quietFor
	}
	return quietFor - time.Since(u.last)
}

// pace is how fast the link is, as the last requests found it. Safe for concurrent use.
type pace struct {
	mu   sync.Mutex
	rtt  time.Duration // until an answer began; 0: not known
	rate float64       // bytes a second; 0: not known
}

const (
	// windowLeast is fetched around a miss however slow the link is: about a frame of small files.
	windowLeast = 128 << 10
	// paceSample is what a request must bring to say something of the rate, and paceTime how long.
	paceSample = 64 << 10
	paceTime   = 2 * time.Millisecond
	// paceNew is the weight of a new measurement.
	paceNew = 0.3
)

// window returns the stored bytes to fetch for a miss that continues nothing: as many as come in the time
// of a round trip and a half, so that neighbours which nobody wants cost no more than asking for them
// would; windowMin on a fast link, or while nothing is known.
func (p *pace) window() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rtt == 0 || p.rate == 0 {
		return windowMin
	}
	return int64(min(max(1.5*p.rtt.Seconds()*p.rate, windowLeast), windowMin))
}

// stopwatch measures one request.
type stopwatch struct {
	p        *pace
	begun    time.Time
	answer   time.Time
	pauses   time.Duration
	received func(n int64)
}

// start begins to measure a request. Its stopwatch belongs to one goroutine.
func (p *pace) start() *stopwatch {
	w := &stopwatch{p: p, begun: time.Now()}
	var got int64
	w.received = func(n int64) {
		got += n
		if took := time.Since(w.answer) - w.pauses; got >= paceSample && took >= paceTime {
			p.note(0, float64(got)/took.Seconds())
			got, w.answer, w.pauses = 0, time.Now(), 0
		}
	}
	return w
}

// answered says that the answer has begun.
func (w *stopwatch) answered() {
	w.answer = time.Now()
	w.p.note(w.answer.Sub(w.begun), 0)
}

// paused says that nothing was read for so long.
func (w *stopwatch) paused(d time.Duration) { w.pauses += d }

func (p *pace) note(rtt time.Duration, rate float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rtt > 0 {
		if p.rtt == 0 {
			p.rtt = rtt
		}
		p.rtt += time.Duration(paceNew * float64(rtt-p.rtt))
	}
	if rate > 0 {
		if p.rate == 0 {
			p.rate = rate
		}
		p.rate += paceNew * (rate - p.rate)
	}
}
