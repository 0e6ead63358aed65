package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/bridge/oldserver"
	"postern/metrics/ledger"
	"postern/proxy"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

func TestMain(m *testing.M) {
	// With the race detector a process that has ended sleeps for a second before
	// it exits, in which SIGTERM kills it.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	testscript.Main(play{m}, map[string]func(){
		"postern": main,
		"crowd":   beCrowd,
		"storm":   beStorm,
	})
}

// The scripts have a certificate mail.pem, its key mail.key and ca.pem beside
// them, $YESTERDAY, $HELD, a port of the test's own process, $FREE, one of nobody, and
// $IMAP, where a server has mail for alice and bob@example.org, and none for
// carol. The password of alice is "secret of alice". Their commands are
//
//	expand FILE...      replace $VARIABLES in files
//	uidls USER FILE     log in by POP3 at $FREE, as soon as somebody serves there,
//	                    and write the unique ids to a file
//	pair KIND CERT KEY  write a certificate with one fault, and its key (script_certs_test.go)
//	observed DIR N [DAY] write into the state that the last N days were observed, but not that of DAY days ago
//	guess USER PASSWORD  log in likewise with another password, which must fail
func TestScripts(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() }) // the scripts run in parallel, after this function
	cert, key, ca := proxytest.CertFiles(t, "mail.example.org")
	imap := mailForScripts(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"uidls": func(ts *testscript.TestScript, _ bool, args []string) {
				shown, err := shownBy(ts.MkAbs("ca.pem"), "127.0.0.1:"+ts.Getenv("FREE"), args[0], "secret of "+args[0])
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Join(shown, "\n")+"\n"), 0o600))
			},
			"oldserver": func(ts *testscript.TestScript, _ bool, args []string) { // sets $OLD
				old := proxytest.StartPOP3Server(t)
				old.Password = "secret of " + args[0]
				var messages []proxytest.POP3Message
				for _, id := range args[1:] {
					messages = append(messages, proxytest.POP3Message{UIDL: strings.ReplaceAll(id, `\x1b`, "\x1b"), Raw: "Subject: old\r\n\r\nold\r\n"})
				}
				old.SetMaildrop(args[0], messages)
				ts.Setenv("OLD", old.Addr)
			},
			"guess": func(ts *testscript.TestScript, _ bool, args []string) {
				if _, err := shownBy(ts.MkAbs("ca.pem"), "127.0.0.1:"+ts.Getenv("FREE"), args[0], args[1]); err == nil {
					ts.Fatalf("%s has logged in", args[0])
				}
			},
			"observed": writeObservedDays,
			"pair":     writeFaultyPair,
			"expand": func(ts *testscript.TestScript, _ bool, args []string) { // $VARIABLES in files
				for _, name := range args {
					ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
				}
			},
		},
		Setup: func(env *testscript.Env) error {
			for name, path := range map[string]string{"mail.pem": cert, "mail.key": key, "ca.pem": ca} {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if name == "mail.pem" { // with its issuer, or check warns
					issuer, err := os.ReadFile(ca)
					if err != nil {
						return err
					}
					content = append(content, issuer...)
				}
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), content, 0o600); err != nil {
					return err
				}
			}
			env.Setenv("HELD", strconv.Itoa(portOf(held)))
			env.Setenv("IMAP", imap)
			env.Setenv("YESTERDAY", time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly))
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer free.Close()
			env.Setenv("FREE", strconv.Itoa(portOf(free)))
			return nil
		},
	})
}

// writeObservedDays writes days that a ledger has observed.
func writeObservedDays(ts *testscript.TestScript, _ bool, args []string) {
	store, err := state.Open(filepath.Join(ts.MkAbs(args[0]), "record.db"), state.Options{})
	ts.Check(err)
	defer func() { ts.Check(store.Close()) }()
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	var days []string
	for i := range n {
		if len(args) == 2 || args[2] != strconv.Itoa(i+1) {
			days = append(days, ledger.Day(time.Now().AddDate(0, 0, -i-1)))
		}
	}
	ts.Check(store.Bucket("days").UpdateAll(context.Background(), days, func(string, []byte) ([]byte, error) {
		return []byte(`{"seconds":86400}`), nil
	}))
}

// mailForScripts returns the address of an IMAP server without TLS.
func mailForScripts(t *testing.T) string {
	t.Helper()
	m := memserver.New(memserver.Options{UIDValidity: 7, Accounts: []memserver.Account{
		{User: "alice", Password: "secret of alice"},
		{User: "bob@example.org", Password: "secret of bob@example.org"},
		{User: "carol", Password: "secret of carol"},
		{User: "dave", Password: "secret of dave"},   // with UIDs of two digits
		{User: "frank", Password: "secret of frank"}, // with Message-IDs
	}})
	t.Cleanup(func() { _ = m.Close() })
	for _, user := range append([]string{"alice", "alice", "alice", "bob@example.org"}, slices.Repeat([]string{"dave"}, 12)...) {
		if err := m.Append(user, []byte("Subject: for "+user+"\r\n\r\nhello\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		if err := m.Append("frank", fmt.Appendf(nil, "Message-ID: <%d@example.org>\r\n\r\nhello\r\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	address, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// shownBy returns the unique ids that a POP3 server shows.
func shownBy(ca, address, user, password string) ([]string, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "mail.example.org"}}
	server := oldserver.Server{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "tcp", address)
		for errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			conn, err = d.DialContext(ctx, "tcp", address)
		}
		return drained{conn}, err
	}}
	m, err := server.Open(ctx, user, proxy.NewSecret([]byte(password)))
	if err != nil {
		return nil, err
	}
	var shown []string
	for _, m := range m.Messages {
		shown = append(shown, m.UIDL)
	}
	return shown, m.Close()
}

// A drained connection is read to its end before it is closed: what a session of Postern has
// learnt is recorded before the connection ends.
type drained struct{ net.Conn }

func (c drained) Close() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.CloseWrite() // after a refused login Postern waits for another
	}
	_, _ = io.Copy(io.Discard, c.Conn)
	return c.Conn.Close()
}
