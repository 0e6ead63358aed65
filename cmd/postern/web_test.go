package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"postern/proxy/listen"
	"postern/proxy/proxytest"
)

// Criterion: A crowd at an HTTP port, however large and patient, takes few descriptors, and mail, metrics and readiness are served beside it.
func TestACrowdAtAnHTTPPortTakesNothingFromMail(t *testing.T) {
	proxytest.Need(t, "prlimit")
	imap, _ := inMemory(t, "mail", "alice")
	ready := freeAddress(t)
	p := launchWith(t, imap, fmt.Sprintf("ready_address: %q", ready))
	allow(t, p.cmd.Process.Pid, 300) // fewer than come
	descriptors := func() int {
		used, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(used)
	}
	before := descriptors()
	for i := range 400 {
		c := dialFrom(t, fmt.Sprintf("127.5.%d.%d", i/200, 1+i%200), ready)
		_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: ") // and nothing more
	}
	within(t, 3*time.Second, "few of them are left, before they have to be", func() bool { return descriptors()-before <= 300/4/4 })
	if err := askReadiness(t.Context(), ready); err != nil {
		t.Errorf("readiness among them: %v", err)
	}
	talk(t, p.imap, p.ca, lines("S: \\* OK *", `C: a LOGIN alice "secret of alice"`, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
	p.scrape(t)
}

// launchWith starts a Postern with IMAP alone, and more keys of metrics.
func launchWith(t *testing.T, imap, more string) *postern {
	t.Helper()
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	p := newPostern(dir, ca)
	p.start(t, file(t, dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}}}
log: {format: json}
metrics: {%s, address: "127.0.0.1:0"}
`, cert, key, imap, more)))
	p.listens(t, 1)
	for _, l := range p.logged(t, "serving HTTP") {
		if l.text("what") == "metrics" {
			p.metrics = l.text("address")
		}
	}
	return p
}

// Criterion: A connection to an HTTP port ends with its answer, or after five seconds without a whole request.
func TestAConnectionToAnHTTPPortIsForOneRequest(t *testing.T) {
	s := newSite(nil, slog.New(slog.DiscardHandler), nil)
	server := s.newWebServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "yes") }))
	if server.ReadHeaderTimeout != 5*time.Second || server.ReadTimeout != 5*time.Second || server.WriteTimeout == 0 || server.MaxHeaderBytes > 8<<10 {
		t.Errorf("the server has no limit, or a large one, for something: %+v", server)
	}
	server.ReadHeaderTimeout, server.ReadTimeout = 100*time.Millisecond, 100*time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listen.Limited(ln, nil)) }()
	defer func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	ask := func(request string) string {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, request)
		answer, err := io.ReadAll(bufio.NewReader(c))
		if err != nil {
			t.Errorf("after %.20q: %v", request, err)
		}
		return string(answer)
	}
	const get = "GET / HTTP/1.1\r\nHost: x\r\n"
	if got := ask(get + "\r\n" + get + "\r\n"); strings.Count(got, "HTTP/1.1 200") != 1 || !strings.Contains(got, "Connection: close") {
		t.Errorf("two requests get %q, want one answer and the end", got)
	}
	if got := ask(get); strings.Contains(got, "200") {
		t.Errorf("half a request gets %q", got)
	}
	if got := ask(get + "X: " + strings.Repeat("x", 10<<10) + "\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 431") {
		t.Errorf("a header of 10 KB gets %.40q", got)
	}
}
