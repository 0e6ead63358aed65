package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

// Criterion: connections to backends, source ports against their limit, routes, IMAP commands, state and log lines are counted of what really happens.
func TestASessionIsSeenInTheMetrics(t *testing.T) {
	imap, _ := inMemory(t, "hello", "alice")
	r := inhabit(t, frame+fmt.Sprintf(`
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

type lastUse struct{ proxy.StateUsed }

func (l *lastUse) Observe(e proxy.Event) { l.StateUsed = e.(proxy.StateUsed) }

func TestErrorsOfTheStateAreNotThoseOfItsUsers(t *testing.T) {
	file, err := state.Open(filepath.Join(t.TempDir(), "state", "x"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var last lastUse
	b := &bucket{name: "uidl", observer: &last, book: file.Bucket("uidl")}
	mine := errors.New("enough")
	ctx := t.Context()
	update := func() error {
		return b.Update(ctx, "alice", func([]byte) ([]byte, error) { return nil, mine })
	}
	scan := func() error {
		return b.Scan(ctx, "", func(string, []byte) error { return mine })
	}
	put := func() error { return b.Put(ctx, "alice", []byte("x")) }
	get := func() error { _, err := b.Get(ctx, "alice"); return err }
	expect := func(operation string, do func() error, fails, told bool) {
		t.Helper()
		last = lastUse{}
		if err := do(); (err != nil) != fails {
			t.Errorf("%s: %v", operation, err)
		}
		if last.Operation != operation || last.Store != "uidl" || (last.Err != nil) != told {
			t.Errorf("%s: told %+v", operation, last)
		}
	}
	expect("update", put, false, false)
	expect("get", get, false, false)
	expect("update", update, true, false)
	expect("scan", scan, true, false)
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	expect("update", put, true, true)
	expect("get", get, true, true)
	gone, leave := context.WithCancel(ctx)
	leave()
	last = lastUse{}
	if _, err := b.Get(gone, "alice"); err == nil || last.Operation != "" {
		t.Errorf("of one who has gone: %v, told %+v", err, last)
	}
}
