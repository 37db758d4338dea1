package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/dns/dnsmessage"

	"coppice.dev/coppice/namespace/origin"
)

// What the scripts about links have: two network name spaces with a cable between, a server that
// misbehaves on request, and a name server. Each is as real as one machine allows.

// netEnv names a script's network; its name spaces have "-near" and "-far" appended.
const netEnv = "NETNS"

var networks atomic.Int64

// network: makes the name spaces of the programs near and far. near0 (10.77.0.1, fd77::1) and far0
// (10.77.0.2, fd77::2) are the ends of a cable. far has 10.77.0.3, fd77::3 and the addresses of this
// machine's name servers as well, which are in $DNSADDRS, with routes that are gone when near0 was down.
func network(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: network")
	}
	name := fmt.Sprintf("coppice-%d-%d", os.Getpid(), networks.Add(1))
	ts.Setenv(netEnv, name)
	ip := func(line string) {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			ts.Fatalf("ip %s: %v %s", line, err, out)
		}
	}
	for _, end := range []string{"near", "far"} {
		ip("netns add " + name + "-" + end)
		ts.Defer(func() { ip("netns del " + name + "-" + end) })
		ip("-n " + name + "-" + end + " link set lo up")
	}
	near, far := "-n "+name+"-near ", "-n "+name+"-far "
	ip(near + "link add near0 type veth peer name far0 netns " + name + "-far")
	for _, a := range []string{"10.77.0.1/24", "fd77::1/64"} {
		ip(near + "addr add " + a + " dev near0 nodad")
	}
	for _, a := range []string{"10.77.0.2/24", "10.77.0.3/24", "fd77::2/64", "fd77::3/64"} {
		ip(far + "addr add " + a + " dev far0 nodad")
	}
	ip(far + "link set far0 up")
	ip(near + "link set near0 up")
	for _, a := range nameServers() {
		at, via := far+"addr add "+a.String()+" dev far0 nodad", near+"route add "+a.String()+" dev near0"
		if a.IsLoopback() { // the cable does not lead there: then it is near that a name server must run
			ts.Setenv("DNSEND", "near")
			continue
		}
		ip(strings.Replace(at, a.String(), netip.PrefixFrom(a, a.BitLen()).String(), 1))
		ip(via)
		ts.Setenv("DNSEND", "far")
		ts.Setenv("DNSADDRS", strings.TrimSpace(ts.Getenv("DNSADDRS")+" "+a.String()))
	}
}

// nameServers are those that programs on this machine ask.
func nameServers() []netip.Addr {
	var all []netip.Addr
	b, _ := os.ReadFile("/etc/resolv.conf")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.Zone() == "" {
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		all = append(all, netip.MustParseAddr("127.0.0.1")) // what resolvers fall back to
	}
	return all
}

// inside is the program near or far: it runs a command in that name space.
func inside(end string) {
	nsenter, err := exec.LookPath("nsenter")
	if err == nil {
		args := append([]string{"nsenter", "--net=/run/netns/" + os.Getenv(netEnv) + "-" + end, "--"}, os.Args[1:]...)
		err = syscall.Exec(nsenter, args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, end+":", err)
	os.Exit(1)
}

// hostileMain is the program hostile ADDR DIR FILE: it serves the origin in DIR as the word in FILE, which
// is read for each request, says:
//
//	ok       as it is
//	garbage  objects have a byte in the middle inverted
//	stall    objects end after their header, but the connection does not
//	drip     objects come a byte a second
//	silent   nothing answers
//	portal   everything is a web page
//	login    everything is a redirect to one
//	plain    everything is a text that is nothing of ours
//	503      everything is unavailable
func hostileMain() {
	addr, dir, file := os.Args[1], os.Args[2], os.Args[3]
	d, err := origin.OpenDir(dir)
	if err == nil {
		err = http.ListenAndServe(addr, misbehave(origin.NewHandler(d), func() string {
			b, _ := os.ReadFile(file)
			return strings.TrimSpace(string(b))
		}))
	}
	fmt.Fprintln(os.Stderr, "hostile:", err)
	os.Exit(1)
}

func misbehave(honest http.Handler, mode func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		isObject := !strings.HasPrefix(r.URL.Path, "/ref/")
		switch m := mode(); {
		case m == "silent":
			<-r.Context().Done()
		case m == "portal":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html><body>Please sign in to use this network.</body></html>")
		case m == "login":
			http.Redirect(w, r, "http://login.example/", http.StatusFound)
		case m == "plain":
			w.Header().Set("Content-Type", "application/octet-stream")
			fmt.Fprint(w, strings.Repeat("success\n", 1000))
		case m == "503":
			http.Error(w, "down for maintenance", http.StatusServiceUnavailable)
		case isObject && (m == "garbage" || m == "stall" || m == "drip"):
			var whole recorder
			honest.ServeHTTP(&whole, r)
			whole.spoil(w, r, m)
		default:
			honest.ServeHTTP(w, r)
		}
	})
}

// recorder keeps an honest answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (rec *recorder) Header() http.Header {
	if rec.header == nil {
		rec.header = http.Header{}
	}
	return rec.header
}

func (rec *recorder) WriteHeader(status int) { rec.status = status }

func (rec *recorder) Write(b []byte) (int, error) { return rec.body.Write(b) }

// spoil gives an answer that was kept, wrongly.
func (rec *recorder) spoil(w http.ResponseWriter, r *http.Request, mode string) {
	for name, values := range rec.header {
		w.Header()[name] = values
	}
	b := rec.body.Bytes()
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(max(rec.status, http.StatusOK))
	flush := http.NewResponseController(w).Flush
	switch mode {
	case "garbage":
		if len(b) > 0 {
			b[len(b)/2] ^= 0xff
		}
		_, _ = w.Write(b)
	case "stall":
		_ = flush()
		<-r.Context().Done()
	case "drip":
		for i := range b {
			_, err := w.Write(b[i : i+1])
			if err == nil {
				err = flush()
			}
			if err != nil {
				return
			}
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
				return
			}
		}
	}
}

// dnsMain is the program dns FILE: a name server, at every address there is, that answers from FILE, which
// is read for each question: lines of a name and its addresses. There is nothing else.
func dnsMain() {
	addrs, err := net.InterfaceAddrs()
	failed := make(chan error, len(addrs)+1)
	failed <- err
	for _, a := range addrs {
		go func() { failed <- serveDNS(a.(*net.IPNet).IP.String(), os.Args[1]) }() // an answer must come from where it was asked for
	}
	for err := range failed {
		if err != nil {
			fmt.Fprintln(os.Stderr, "dns:", err)
		}
	}
}

func serveDNS(addr, file string) error {
	conn, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
	if err != nil {
		return err
	}
	for {
		buf := make([]byte, 512)
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if reply, err := answerDNS(buf[:n], file); err == nil {
			_, _ = conn.WriteTo(reply, from) // who asked, asks again
		}
	}
}

// answerDNS makes the reply to a question.
func answerDNS(question []byte, file string) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(question)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	h.Response, h.Authoritative = true, true
	b := dnsmessage.NewBuilder(nil, h)
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q); err != nil {
		return nil, err
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 0}
	for _, a := range zone(file, q.Name.String()) {
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			err = b.AResource(rh, dnsmessage.AResource{A: a.As4()})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			err = b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// zone returns the addresses of a name.
func zone(file, name string) (all []netip.Addr) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(io.LimitReader(f, 1<<16)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != strings.TrimSuffix(name, ".") {
			continue
		}
		for _, x := range fields[1:] {
			if a, err := netip.ParseAddr(x); err == nil {
				all = append(all, a)
			}
		}
	}
	return all
}
