package service

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/proxy"
)

func TestWhatAServerLacksIsSaidWithWhatFollows(t *testing.T) {
	good := bridge.Traits{UIDPlus: true, Move: true, Keywords: true, UIDNext: true, StatusUIDNext: true, Trash: "Trash"}
	without := func(take func(*bridge.Traits)) bridge.Traits {
		t := good
		take(&t)
		return t
	}
	plain := without(func(t *bridge.Traits) { t.UIDPlus = false })
	const marked = "no UIDPLUS: what POP3 deletes is marked"
	for _, test := range []struct {
		pop3   string
		traits bridge.Traits
		want   []string
	}{
		{"delete: expunge", good, nil},
		{"delete: expunge", plain, []string{marked, "state.path is not set: the keyword"}},
		{"delete: expunge", without(func(t *bridge.Traits) { t.UIDPlus, t.Keywords = false, false }), []string{marked, "no keywords, and state.path is not set: POP3 shows again"}},
		{"delete: isolate", plain, []string{"no UIDPLUS: delete: isolate"}},
		{"delete: keep", bridge.Traits{UIDNext: true}, nil},
		{"delete: trash", plain, nil},
		{"delete: trash", without(func(t *bridge.Traits) { t.UIDPlus, t.Move = false, false }), []string{marked, "the keyword"}},
		{"delete: trash", without(func(t *bridge.Traits) { t.Trash = "" }), []string{`no \Trash mailbox`}},
		{"delete: hide", without(func(t *bridge.Traits) { t.Keywords = false }), []string{"no keywords: with delete: hide"}},
		{"delete: hide", without(func(t *bridge.Traits) { t.UIDNext = false }), []string{"no UIDNEXT in SELECT: "}},
		{"delete: hide", without(func(t *bridge.Traits) { t.UIDNext, t.StatusUIDNext = false, false }), []string{"no UIDNEXT: "}},
		{"delete: hide", without(func(t *bridge.Traits) { t.ReadOnly = true }), []string{"it can only be read"}},
	} {
		cfg, err := configs.Parse("test.yaml", fmt.Appendf(nil, `
listeners: [{protocol: pop3, address: ":995", pop3: {%s}}]
tls: {certificates: [{cert: a.pem, key: a.key}]}
backends: {main: {imap: {address: "10.0.0.5:993"}}}
`, test.pop3))
		if err != nil {
			t.Fatal(err)
		}
		got := missingFeatures(test.traits, cfg, "main")
		if !slices.EqualFunc(got, test.want, strings.Contains) {
			t.Errorf("%s, %+v:\n%s\nwant %q", test.pop3, test.traits, strings.Join(got, "\n"), test.want)
		}
	}
}

// Criterion: check --probe --user looks at the INBOX that a user's POP3 sessions get.
func TestInspectLooksAtTheUsersINBOX(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	h := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0", pop3: {delete: hide}}]
backends: {main: {imap: {address: %q, tls: none}}}
`, imap)).service.current.Load()
	for password, want := range map[string]string{"secret of alice": "INBOX of alice on backend main:\n  ", "wrong": ""} {
		var out strings.Builder
		err := h.inspectINBOX(t.Context(), &out, "alice", proxy.NewSecret([]byte(password)))
		if (err == nil) != (want != "") || !strings.HasPrefix(out.String(), want) {
			t.Errorf("with %q: %q, %v", password, out.String(), err)
		}
	}
}

// Criterion: check --probe --user warns of a server that offers UNAUTHENTICATE to
// its users.
func TestInspectWarnsOfUNAUTHENTICATE(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var copies sync.WaitGroup
	t.Cleanup(copies.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	copies.Go(func() { // a server that says more than it can
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.DialTimeout("tcp", imap, time.Second)
			if err != nil {
				_ = near.Close()
				continue
			}
			copies.Go(func() { _, _ = io.Copy(far, near); _ = far.Close() })
			copies.Go(func() {
				defer func() { _ = near.Close() }()
				b := make([]byte, 4096)
				for {
					n, err := far.Read(b)
					if _, err2 := near.Write(bytes.ReplaceAll(b[:n], []byte("IMAP4rev1 "), []byte("IMAP4rev1 UNAUTHENTICATE "))); err != nil || err2 != nil {
						return
					}
				}
			})
		}
	})
	for address, want := range map[string]bool{imap: false, ln.Addr().String(): true} {
		h := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
`, address)).service.current.Load()
		var out strings.Builder
		if err := h.inspectINBOX(t.Context(), &out, "alice", proxy.NewSecret([]byte("secret of alice"))); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "UNAUTHENTICATE") != want {
			t.Errorf("a warning is %v wanted: %s", want, out.String())
		}
	}
}
