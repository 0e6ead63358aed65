package audit_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/audit"
)

func newLog() (*audit.Log, *bytes.Buffer) {
	var out bytes.Buffer
	return audit.New(slog.New(slog.NewTextHandler(&out, nil))), &out
}

var visitor = proxy.Client{
	ID: "S1", Service: "pop3", Protocol: proxy.POP3, Addr: netip.MustParseAddrPort("192.0.2.1:4711"),
}

func refused(name string) proxy.Attempt {
	return proxy.Attempt{Client: visitor, Via: proxy.ViaUserPass, User: name, Account: name, Err: proxy.NewRefusal(proxy.Wrong, nil)}
}

// Criterion: a name that nobody has logged in with is never written: people type passwords into the user field.
func TestAuditWritesNoNameThatMayBeAPassword(t *testing.T) {
	a, out := newLog()
	a.Observe(refused("hunter2"))
	a.Observe(refused("hunter2"))
	a.Observe(refused("other"))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || strings.Contains(out.String(), "hunter2") {
		t.Fatalf("wrote %s", out)
	}
	hash := func(line string) string {
		_, h, _ := strings.Cut(line, "account_hash=")
		return strings.Fields(h)[0]
	}
	if hash(lines[0]) != hash(lines[1]) || hash(lines[0]) == hash(lines[2]) {
		t.Errorf("a name has not one hash of its own:\n%s", out)
	}
}

func TestAuditNamesAnAccountThatHasLoggedIn(t *testing.T) {
	a, out := newLog()
	a.Observe(proxy.Attempt{Client: visitor, User: "Alice", Account: "alice"})
	a.Observe(refused("alice"))
	if got := strings.Count(out.String(), "account=alice"); got != 2 {
		t.Errorf("wrote %s", out)
	}
	a.Known = func(account string) bool { return account == "bob" }
	a.Observe(refused("bob"))
	if !strings.Contains(out.String(), "account=bob") {
		t.Errorf("wrote %s", out)
	}
}

func TestAuditWritesOneLineASession(t *testing.T) {
	a, out := newLog()
	a.Observe(proxy.Closed{Client: visitor, End: proxy.EndClientAbort}) // never logged in
	a.Observe(proxy.Closed{
		Client: visitor, Account: "alice", Backend: "main", Duration: 1500 * time.Millisecond, Received: 10, Sent: 20,
		Totals: proxy.Totals{Mode: proxy.ModeBridge, Retrieved: 3, Deleted: 2, UIDLsBefore: 0xabc, UIDLsAfter: 1<<63 | 1}, End: proxy.EndClientQuit,
	})
	line := out.String()
	_, line, _ = strings.Cut(line, "level=")
	want := `INFO msg="connection ended" listener=pop3 ip=192.0.2.1 session=S1 tls=none account=alice backend=main ` +
		"end=client_quit duration=1.5s received=10 sent=20 retrieved=3 deleted=2 mode=bridge uidls_before=0000000000000abc uidls_after=8000000000000001\n"
	if line != want {
		t.Errorf("wrote %s, want %s", line, want)
	}
}

func TestAuditSaysTroubleOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, out := newLog()
		for range 100 {
			a.Observe(proxy.Dialed{Backend: "main", Protocol: proxy.IMAP, Result: proxy.DialRefused, Err: errors.New("connection refused")})
			time.Sleep(time.Second)
		}
		if got := strings.Count(out.String(), "\n"); got != 2 {
			t.Errorf("%d lines in 100 s:\n%s", got, out)
		}
		if got := strings.Count(out.String(), "repeated=59 "); got != 1 {
			t.Errorf("the second line does not say how often it was:\n%s", out)
		}
	})
}

func TestACacheThatFailsIsSaidOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, out := newLog()
		for range 100 {
			a.Observe(proxy.MaildropNoticed{Client: visitor, Account: "alice", Kind: proxy.NoticeCache, Err: errors.New("state is damaged")})
			time.Sleep(time.Second)
		}
		if got := strings.Count(out.String(), "\n"); got != 2 || !strings.Contains(out.String(), "repeated=59") {
			t.Errorf("%d lines in 100 s:\n%s", got, out)
		}
	})
}

func TestAuditSaysWhenABackendChanges(t *testing.T) {
	a, out := newLog()
	for _, up := range []bool{true, true, false, false, true} {
		var err error
		if !up {
			err = errors.New("connection refused")
		}
		a.Observe(proxy.Probed{Backend: "main", Protocol: proxy.IMAP, Up: up, Err: err})
	}
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("wrote %s", out)
	}
}

// Criterion: The log says when a provider of tokens gives none, and when it gives them again; that there is none for one mailbox is no end of that.
func TestAuditSaysWhenAProviderChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, out := newLog()
		for _, result := range []string{
			proxy.TokenOK, proxy.TokenAccount, proxy.TokenOK, proxy.TokenTemporary, proxy.TokenConfiguration, proxy.TokenAccount, proxy.TokenOK, proxy.TokenOK,
		} {
			e := proxy.TokenRequested{Provider: "contoso", Result: result}
			if result != proxy.TokenOK {
				e.Err = errors.New(result)
			}
			a.Observe(e)
			time.Sleep(time.Minute)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			_, text, _ := strings.Cut(strings.TrimSpace(line), "msg=")
			got = append(got, text)
		}
		none := `"provider gives no token" provider=contoso result=`
		want := []string{
			none + "account err=account", none + "temporary err=temporary", none + "configuration err=configuration",
			none + "account err=account", `"provider gives tokens again" provider=contoso`,
		}
		if !slices.Equal(got, want) {
			t.Errorf("the log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestAuditKeepsALineOneLine(t *testing.T) {
	a, out := newLog()
	a.Known = func(string) bool { return true }
	a.Observe(refused("eve\r\nlevel=INFO msg=forged \x1b[2J\u202e"))
	if got := strings.Count(out.String(), "\n"); got != 1 || strings.ContainsAny(out.String(), "\r\x1b\u202e") {
		t.Errorf("wrote %q", out)
	}
}

func TestAuditWritesWhatIsOddAboutAMaildrop(t *testing.T) {
	const about = " listener=pop3 ip=192.0.2.1 session=S1 tls=none account=alice "
	for _, test := range []struct {
		event proxy.Event
		want  string
	}{
		{
			proxy.MaildropNoticed{Client: visitor, Account: "alice", Kind: proxy.NoticeChanged, Messages: 3},
			"WARN msg=\"maildrop notice\"" + about + "kind=uidls_changed messages=3",
		},
		{
			proxy.MaildropNoticed{Client: visitor, Account: "alice", Kind: proxy.NoticeRecord, Messages: 3, Err: errors.New("disk on fire")},
			"WARN msg=\"maildrop notice\"" + about + `kind=record_failed messages=3 err="disk on fire"`,
		},
		{
			proxy.MaildropNoticed{Client: visitor, Account: "alice", Kind: proxy.NoticeRenumbered},
			"INFO msg=\"maildrop notice\"" + about + "kind=renumbered messages=0",
		},
		{
			proxy.Reconnected{Client: visitor, Account: "alice", Backend: "main", Cause: proxy.LostBye, Result: proxy.ReconnectOK},
			`INFO msg="backend lost within a session"` + about + "backend=main cause=bye result=ok",
		},
		{
			proxy.Reconnected{
				Client: visitor, Account: "alice", Backend: "main", Cause: proxy.LostClosed, Result: proxy.ReconnectFailed,
				Err: errors.New("log in again"),
			},
			`WARN msg="backend lost within a session"` + about + `backend=main cause=closed result=failed err="log in again"`,
		},
	} {
		a, out := newLog()
		a.Observe(test.event)
		_, line, _ := strings.Cut(strings.TrimSpace(out.String()), "level=")
		if line != test.want {
			t.Errorf("wrote %s\nwant  %s", line, test.want)
		}
	}
}

func TestAuditSaysWhichMailboxesLookDifferent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, out := newLog()
		changed := proxy.MailboxChanged{Backend: "main", Account: "alice", Kind: proxy.ChangeEmptied}
		again, accepted := changed, changed
		again.Repeated, accepted.Accepted = true, true
		for _, e := range []proxy.Event{changed, again, accepted} {
			a.Observe(e)
		}
		a.Observe(proxy.BrakeChanged{Backend: "main", On: true, Since: time.Now(), Counted: 11, Polled: 30})
		changed.Refused = true
		for range 500 {
			a.Observe(changed)
		}
		time.Sleep(2 * time.Minute)
		a.Observe(changed)
		a.Observe(proxy.BrakeChanged{Backend: "main", On: true, Err: errors.New("disk full")})
		a.Observe(proxy.BrakeChanged{Backend: "main", Accepted: time.Now().Add(time.Hour)})
		a.Observe(proxy.BrakeChanged{Backend: "main"})
		a.Observe(proxy.ListingRefused{Reason: proxy.ListingsFull})
		a.Observe(proxy.ListingRefused{Reason: proxy.ListingsFull})
		var got []string
		for line := range strings.Lines(out.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), " ") // without the time
			got = append(got, line)
		}
		want := []string{
			`level=WARN msg="mailbox looks different" backend=main account=alice kind=emptied`,
			`level=INFO msg="mailbox looks different, as expected" backend=main account=alice kind=emptied`,
			`level=ERROR msg="brake is on: too many mailboxes look different and are refused until postern uidl accept" backend=main counted=11 polled=30 since=2000-01-01T00:00:00.000Z`,
			`level=WARN msg="mailbox looks different: refused" backend=main account=alice kind=emptied`,
			`level=WARN msg="mailbox looks different: refused" backend=main account=alice kind=emptied repeated=499`,
			`level=ERROR msg="brake is on: its state cannot be read or kept; mailboxes that look different are refused" backend=main counted=0 polled=0 err="disk full"`,
			`level=WARN msg="brake is off: mailboxes may look different" backend=main counted=0 polled=0 accepted_until=2000-01-01T01:02:00.000Z`,
			`level=WARN msg="brake is off" backend=main counted=0 polled=0`,
			`level=WARN msg="no memory for a listing: see limits.listing_memory" reason=full`,
		}
		if !slices.Equal(got, want) {
			t.Errorf("wrote\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// Criterion: the line of a refused login says what shape the name has, and not the name: whether the user forgot the domain,
// or mistyped it.
func TestALineSaysTheShapeOfAName(t *testing.T) {
	a, out := newLog()
	a.KnownDomain = func(domain string) bool { return domain == "example.org" }
	for _, name := range []string{"bob", "bob@example.org", "bob@exmaple.org", "", "bob@"} {
		a.Observe(refused(name))
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		_, shape, _ := strings.Cut(line, "name_shape=")
		shape, _, _ = strings.Cut(shape, " ")
		got = append(got, shape)
	}
	if want := []string{"no_domain", "known_domain", "unknown_domain", "", "unknown_domain"}; !slices.Equal(got, want) {
		t.Errorf("shapes: %q, want %q", got, want)
	}
	if strings.Contains(out.String(), "bob") || strings.Contains(out.String(), "example.org") {
		t.Errorf("wrote %s", out)
	}
}

func TestTheHashOfANameIsThatOfItsLine(t *testing.T) {
	a, out := newLog()
	a.HashFirst = strings.ToUpper
	a.Observe(refused("hunter2"))
	if want := "account_hash=" + a.Hash("hunter2").String() + " "; !strings.Contains(out.String(), want) || a.Hash("hunter2") != a.HashOf("HUNTER2") {
		t.Errorf("wrote %s, want %s", out, want)
	}
	b, _ := newLog()
	if b.Hash("x") == a.Hash("x") {
		t.Error("two processes have the same hash")
	}
	b.HashFirst = a.HashFirst
	if b.SetKey(a.Key()); b.Hash("x") != a.Hash("x") {
		t.Error("with the same key the hashes differ")
	}
}

func TestAForgottenAccountIsNotKnown(t *testing.T) {
	a, out := newLog()
	a.Observe(proxy.Attempt{Client: visitor, User: "alice", Account: "alice"})
	a.Forget("alice")
	out.Reset()
	a.Observe(refused("alice"))
	if strings.Contains(out.String(), "account=alice") {
		t.Errorf("wrote %s", out)
	}
}

// Comparisons that were not begun are no trouble, and one line a minute is enough.
func TestAuditSaysWhatShadowHasFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, out := newLog()
		for range 3 {
			a.Observe(proxy.ShadowCompared{Client: visitor, Account: "alice", Backend: "main", Result: proxy.ShadowSkipped, Err: errors.New("busy")})
			a.Observe(proxy.ShadowCompared{Client: visitor, Account: "alice", Backend: "main", Result: proxy.ShadowFailed, Err: errors.New("no")})
		}
		a.Observe(proxy.ShadowCompared{Client: visitor, Account: "alice", Backend: "main", Result: proxy.ShadowClean, Messages: 2, Found: 2, Learnt: 2})
		a.Observe(proxy.ShadowCompared{Client: visitor, Account: "alice", Backend: "main", Result: proxy.ShadowDiffers, Messages: 2, Found: 1, Missing: 1})
		var got []string
		for line := range strings.Lines(out.String()) {
			_, line, _ = strings.Cut(line, "level=")
			level, _, _ := strings.Cut(line, " ")
			_, result, _ := strings.Cut(line, "result=")
			result, _, _ = strings.Cut(result, " ")
			got = append(got, level+" "+result)
		}
		if want := []string{"INFO skipped", "WARN error", "INFO clean", "WARN differs"}; !slices.Equal(got, want) {
			t.Errorf("wrote %q, want %q:\n%s", got, want, out)
		}
	})
}
