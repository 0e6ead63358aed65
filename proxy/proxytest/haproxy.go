package proxytest

import (
	"path/filepath"
	"testing"
)

// An HAProxy is a real HAProxy in TCP mode on a free port of 127.0.0.1.
type HAProxy struct {
	// Addr is where it listens: host:port.
	Addr string
	// Log is the path of its log.
	Log string

	program program
}

// StartHAProxy starts an HAProxy that passes connections on to backend
// (host:port) behind a PROXY header of the version sendProxy: v1, v2, v2-ssl
// (with its TLVs of TLS), or empty for none; check: none, and HAProxy looks all the
// time whether the backend can be connected to. It waits until HAProxy takes
// connections, which says nothing of the backend; the end of the test stops it.
func StartHAProxy(t testing.TB, backend, sendProxy string) *HAProxy {
	t.Helper()
	Need(t, "haproxy")
	send, known := map[string]string{
		"": "", "v1": "send-proxy", "v2": "send-proxy-v2", "v2-ssl": "send-proxy-v2-ssl", "check": "check inter 100ms",
	}[sendProxy]
	if !known {
		t.Fatalf("HAProxy sends no PROXY header %q", sendProxy)
	}
	dir := shortDir(t)
	port, ready := freePort(t), freePort(t)
	h := &HAProxy{Addr: address(port), Log: filepath.Join(dir, "log")}
	config := filepath.Join(dir, "haproxy.cfg")
	writeConf(t, config, "haproxy.cfg.in", map[string]any{
		"Addr": h.Addr, "Ready": address(ready), "Backend": backend, "SendProxy": send,
	})
	h.program = program{args: []string{"haproxy", "-db", "-f", config}, log: h.Log, output: h.Log, ready: address(ready)}
	h.program.run(t)
	return h
}

// Stop stops HAProxy and waits until it is gone.
func (h *HAProxy) Stop(t testing.TB) {
	t.Helper()
	h.program.stop(t)
}

// Start starts a stopped HAProxy again on the same port.
func (h *HAProxy) Start(t testing.TB) {
	t.Helper()
	h.program.start(t)
}
