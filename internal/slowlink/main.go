// Command slowlink is a TCP proxy that behaves as a slow link, for benchmarks: it delays what passes and
// caps the bandwidth of each direction, shared by all connections, as a line is. It prints the address it
// listens on, and ends with its standard input.
//
// It is toxiproxy with a toxic of its own, since the one it has caps each connection by itself. What a
// real line has besides: a round trip to open a connection, and slow starts. Loss it has none.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

const (
	// pieceBytes is what one connection sends before another has its turn.
	pieceBytes = 16 << 10
	catchUp    = 5 * time.Millisecond
)

// line caps the bandwidth of all connections together. Rate is in bytes a second.
type line struct {
	Rate int64 `json:"rate"`

	mu   sync.Mutex
	free time.Time // when the last piece will have passed
}

// reserve takes the line for n bytes and says when they have passed.
func (l *line) reserve(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Timers are late by a millisecond or so: what that cost is caught up with.
	if earliest := time.Now().Add(-catchUp); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.Rate) * float64(time.Second)))
	return l.free
}

// Pipe implements toxics.Toxic; it runs once for each connection and direction.
func (l *line) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case p := <-stub.Input:
			if p == nil {
				stub.Close()
				return
			}
			for rest := p.Data; len(rest) > 0; {
				n := min(len(rest), pieceBytes)
				<-time.After(time.Until(l.reserve(n)))
				stub.Output <- &stream.StreamChunk{Data: rest[:n], Timestamp: time.Now()}
				rest = rest[n:]
			}
		}
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	upstream := flag.String("upstream", "", "address to connect to")
	rtt := flag.Duration("rtt", 20*time.Millisecond, "round trip")
	rate := flag.Float64("mbit", 100, "Mbit/s of each direction")
	flag.Parse()
	if err := run(*listen, *upstream, *rtt, *rate); err != nil {
		fmt.Fprintln(os.Stderr, "slowlink:", err)
		os.Exit(1)
	}
}

func run(listen, upstream string, rtt time.Duration, mbit float64) error {
	toxics.Register("line", new(line))
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	p := toxiproxy.NewProxy(server, "link", listen, upstream)
	if err := p.Start(); err != nil {
		return err
	}
	defer p.Stop()
	for _, way := range []string{"upstream", "downstream"} {
		for _, toxic := range []map[string]any{
			{"name": "line-" + way, "type": "line", "stream": way, "attributes": map[string]any{"rate": int64(mbit * 1e6 / 8)}},
			{"name": "latency-" + way, "type": "latency", "stream": way, "attributes": map[string]any{"latency": rtt.Milliseconds() / 2}},
		} {
			b, err := json.Marshal(toxic)
			if err != nil {
				return err
			}
			if _, err := p.Toxics.AddToxicJson(bytes.NewReader(b)); err != nil {
				return err
			}
		}
	}
	fmt.Println(p.Listen)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
