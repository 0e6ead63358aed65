package service

import (
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: connections to backends, source ports against their limit, routes, IMAP commands, state and log lines are counted of what really happens.
func TestASessionIsSeenInTheMetrics(t *testing.T) {
	imap, _ := inMemory(t, "hello", "alice")
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none, source: [127.0.0.1, 127.0.0.2]}}}
state: {path: %q}
`, imap, filepath.Join(t.TempDir(), "state")))
	c := r.secure(r.dial(t, "pop3"))
	proxytest.Transcript(t, c, `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS secret of alice
		S: +OK *
		C: RETR 1
		S: +OK *
		S: Subject: hello
		S:
		S: hello
		S: .
	`)
	all := r.metrics("postern_")
	for _, want := range []string{
		`backend_connections_open{backend="main",protocol="imap"} 1`,
		`backend_source_ports_used{backend="main",protocol="imap"} 1`,
		fmt.Sprintf(`backend_source_ports_limit{backend="main",protocol="imap"} %d`, 2*localPorts()),
		`route_lookups_total{result="found",source="default"} 1`,
		`imap_client_commands_total{command="SELECT",result="ok"} 1`,
		`imap_client_commands_total{command="FETCH",result="ok"} [1-9]`,
		`imap_client_commands_total{command="FETCH BODY",result="ok"} 1`,
		`state_operations_total{operation="get",result="ok",store="listings"} [1-9]`,
		`log_messages_total{level="info"} [1-9]`,
	} {
		want = strings.NewReplacer("{", `\{`, "}", `\}`).Replace(want)
		if !regexp.MustCompile("(?m)^postern_" + want).MatchString(all) {
			t.Errorf("no series is %s", want)
		}
	}
	if t.Failed() {
		t.Log(all)
	}
}

// Criterion: the status page shows the last error of a backend that is not reached, and a backend that does not offer the identity asked for.
func TestThePageShowsWhatIsWrongWithABackend(t *testing.T) {
	imap, submission := inMemory(t, "hello", "alice")
	away := proxytest.FreeAddress(t)
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: submission, address: "127.0.0.1:0"}]
backends:
  main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none, identity: xclient}}
  moved: {imap: {address: %q, tls: none}}
routes: [{backend: main}]
`, imap, submission, away))
	proxytest.Transcript(t, r.secure(r.dial(t, "submission")), `
		S: 220 *
		C: HELO client.example
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHNlY3JldCBvZiBhbGljZQ==
		S: 235 *
	`)
	for _, pool := range r.service.current.Load().pools {
		pool.Probe(t.Context())
	}
	w := httptest.NewRecorder()
	r.service.page.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	rows := grep(w.Body.String(), `<th scope="row">m`)
	for _, want := range []string{
		`(?m)>main</th><td>imap</td><td>up</td>`,
		`(?m)>main</th><td>submission</td><td>up, <strong class="warn">takes Postern for the client</strong></td>`,
		`(?m)>moved</th><td>imap</td><td><strong class="bad">down</strong><br><span class="quiet">[^<]*at ` + away + `: connection refused: nothing listens at ` + away + `; start the server, [^<]*\(test.yaml:\d+: backends.moved.imap.address\)</span></td>`,
	} {
		if !regexp.MustCompile(want).MatchString(rows) {
			t.Errorf("the page has no row %s:\n%s", want, rows)
		}
	}
}
