package service

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/listen"
	"postern/proxy/proxytest"
)

func TestReadinessHasAnAddressOfItsOwn(t *testing.T) {
	imap, _ := inMemory(t, "mail")
	config := strings.Replace(baseConfig, "{address: off}", `{address: "127.0.0.1:0", ready_address: "127.0.0.1:0"}`, 1)
	log := new(lockedBuffer)
	cfg, err := configs.Parse("test.yaml", []byte(config+fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap)))
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	startServiceWith(t, cfg, store, log)
	_, at, ok := strings.Cut(grep(log.String(), "what=health"), "address=")
	if !ok {
		t.Fatalf("it is not served:\n%s", log)
	}
	for path, want := range map[string]int{"/readyz": http.StatusOK, "/healthz": http.StatusOK, "/metrics": http.StatusNotFound} {
		response, err := http.Get("http://" + strings.TrimSpace(at) + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, response.StatusCode, want)
		}
	}
}

// Criterion: A connection to an HTTP port ends with its answer, or after five seconds without a whole request.
func TestAConnectionToAnHTTPPortIsForOneRequest(t *testing.T) {
	server := newHTTPServer(slog.New(slog.DiscardHandler), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "yes") }))
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
