package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"coppice.dev/coppice/builder"
)

// bar shows the progress of long work on a terminal: things, bytes, rate, time left. Elsewhere, and
// with --quiet, it only prints notes, or nothing. Safe for concurrent use.
type bar struct {
	stderr io.Writer
	quiet  bool
	pool   *mpb.Progress // nil: no bar
	bar    *mpb.Bar

	mu     sync.Mutex
	last   time.Time
	counts string
}

// progress starts a bar that counts things, as "files". The caller closes it.
func (a *app) progress(what, things string) *bar {
	b := &bar{stderr: a.stderr, quiet: a.quiet, last: time.Now()}
	if a.quiet || !isTerminal(a.stderr) {
		return b
	}
	b.pool = mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(30), mpb.WithRefreshRate(100*time.Millisecond))
	b.bar = b.pool.AddBar(0, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(what+"  "), decor.Any(func(decor.Statistics) string { return b.text(things) })),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f  "),
			decor.EwmaSpeed(decor.SizeB1024(0), "% .1f  ", 30), decor.EwmaETA(decor.ET_STYLE_GO, 30)))
	return b
}

func (b *bar) text(things string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.counts == "" {
		return ""
	}
	return b.counts + " " + things + " "
}

// Set says how far the work is. Totals are 0 while they are not known.
func (b *bar) Set(things, thingsAll, bytes, bytesAll uint64) {
	if b.bar == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts = fmt.Sprint(things)
	if thingsAll > 0 {
		b.counts = fmt.Sprintf("%d/%d", things, thingsAll)
	}
	// One byte more than there is: the bar ends when it is closed, not when it is full.
	b.bar.SetTotal(int64(max(bytes, bytesAll))+1, false)
	now := time.Now()
	b.bar.EwmaSetCurrent(int64(bytes), now.Sub(b.last))
	b.last = now
}

// Import is Set for an import.
func (b *bar) Import(p builder.Progress) { b.Set(p.Files, p.FilesTotal, p.Bytes, p.BytesTotal) }

// Note prints a line above the bar.
func (b *bar) Note(msg string) {
	switch {
	case b.quiet:
	case b.pool != nil:
		fmt.Fprintln(b.pool, msg)
	default:
		fmt.Fprintln(b.stderr, msg)
	}
}

// Close removes the bar.
func (b *bar) Close() {
	if b.pool != nil {
		b.bar.Abort(true)
		b.pool.Wait()
	}
}
