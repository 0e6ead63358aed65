package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// again is the script of a server to which a session comes back.
const again = "C: T1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] of today\nS: T1 OK done\n"

// faulty runs a session with servers that play the scripts, one after the other.
func faulty(t *testing.T, b *Backend, scripts ...string) *bridged {
	t.Helper()
	var conns []net.Conn
	for _, script := range scripts {
		near, far := proxytest.Pipe(t)
		proxytest.ServeTranscript(t, far, script)
		conns = append(conns, near)
	}
	b.LogIn, b.Estimates, b.KeepUnseen, b.Timeout = connected(conns[0], capabilities, conns[1:]...), true, true, 5*time.Second
	return run(t, b)
}

// Criterion: a backend that is lost between commands is connected to again with the session's credentials, and the client sees nothing.
func TestReconnectBetweenCommands(t *testing.T) {
	for name, lost := range map[string]struct{ script, cause string }{
		"without a word": {"S: <EOF>", proxy.LostClosed},
		"after BYE":      {"S: * BYE Autologout\nS: <EOF>", proxy.LostBye},
		"in the row":     {"C: F1 UID FETCH *\nS: * 1 FETCH (UID 11 BOD\nS: <EOF>", proxy.LostClosed},
	} {
		t.Run(name, func(t *testing.T) {
			r := faulty(t, &Backend{Name: "main"}, opened(5, 5)+lost.script, again+`
				C: F1 UID FETCH 11 (UID BODY.PEEK[])
				S- * 1 FETCH (UID 11 BODY[] {5}\r\nabc\r\n)\r\nF1 OK x\r\n
				C: T1 UID STORE 12 +FLAGS.SILENT (\\Deleted)
				S: T1 OK x
				C: T2 UID EXPUNGE 12
				S: T2 OK x
				C: Q LOGOUT
				S: Q OK x
			`)
			proxytest.Transcript(t, r.conn, `
				C: DELE 2
				S: +OK *
				C: RETR 1
				S: +OK 5 octets
				S: abc
				S: .
				C: QUIT
				S: +OK Goodbye
			`)
			_ = r.wait(t)
			want := proxy.Reconnected{
				Client: proxy.Client{ID: "ID42"}, Account: "alice", Backend: "main", Cause: lost.cause, Result: proxy.ReconnectOK,
			}
			if got := of[proxy.Reconnected](r.events); len(got) != 1 || got[0] != want {
				t.Errorf("told %+v, want %+v", got, want)
			}
		})
	}
}

// A server that says nothing is lost, too.
func TestReconnectAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		dead := make(chan struct{})
		go func() {
			defer close(dead)
			_, _ = io.Copy(io.Discard, far)
		}()
		s := &session{
			backend: &Backend{Name: "main", LogIn: func(context.Context, *proxy.Login) (net.Conn, string, error) {
				return nil, "", proxy.NewRefusal(proxy.Unavailable, errors.New("connection refused"))
			}},
			login: &proxy.Login{Account: "alice"}, inbox: inbox.New(near, capabilities, inbox.Options{Timeout: time.Minute}), maildrop: newMaildrop([]message{{uid: 11}}, 7),
		}
		events := &recorder{}
		s.backend.Observer = events
		if _, err := s.openWithReconnect(t.Context(), 0, inbox.Body, "BODY[]"); !errors.Is(err, proxy.ErrBackendClosed) {
			t.Errorf("first = %v, want %v", err, proxy.ErrBackendClosed)
		}
		<-dead
		got := of[proxy.Reconnected](events)
		if len(got) != 1 || got[0].Cause != proxy.LostSilent || got[0].Result != proxy.ReconnectFailed || got[0].Err == nil {
			t.Errorf("told %+v, want one that failed after silence", got)
		}
	})
}

// Criterion: a login that is refused when the session comes back is never [AUTH]: the session ends with a temporary error, and no guess is counted.
func TestRefusedReloginIsTemporary(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5)+"S: <EOF>")
	first := connected(near, capabilities)
	calls := 0
	r := run(t, &Backend{LogIn: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		if calls++; calls > 1 {
			if string(l.Secret.Reveal()) != "secret" {
				t.Error("not the session's secret")
			}
			if !l.Again {
				t.Error("a session that was there is queued behind new ones")
			}
			return nil, "", proxy.NewRefusal(proxy.Wrong, errors.New("no"))
		}
		return first(ctx, l)
	}})
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: -ERR \[SYS/TEMP] The mail server is unavailable: try again later (session ID42)
		S: <EOF>
	`)
	err := r.wait(t)
	if !errors.Is(err, proxy.ErrBackendClosed) || proxy.ReasonOf(err) != 0 || calls != 2 {
		t.Errorf("Run = %v after %d logins, want %v and no refusal, after 2", err, calls, proxy.ErrBackendClosed)
	}
}

// Criterion: a message that was cut goes on if the server gives the same octets again, at most once, and is never completed with others.
func TestMessageGoesOnAfterALoss(t *testing.T) {
	body := strings.Repeat(".123456789abcd\r\n", 1000)
	row := func(body string, cut int) string {
		return fmt.Sprintf("C: F1 UID FETCH 11 (UID BODY.PEEK[])\nS- * 1 FETCH (UID 11 BODY[] {%d}\\r\\n%s\n", len(body), escape(body[:cut]))
	}
	const lost = "S: <EOF>"
	whole := row(body, len(body)) + `S- )\r\nF1 OK x\r\n`
	for _, test := range []struct {
		name     string
		stable   bool
		scripts  []string
		complete bool
	}{
		{"the same", false, []string{again + whole}, true},
		{"from the offset", true, []string{again + "C: F1 UID FETCH 11 (UID BODY.PEEK[]<*\nS- <rest>"}, true},
		{"another length", false, []string{again + row(body+"x\r\n", 12000)}, false},
		{"other octets", false, []string{again + row(strings.Replace(body, "a", "b", 1), len(body))}, false},
		{"lost again", false, []string{again + row(body, 14000) + lost}, false},
		{"gone", false, []string{again + "C: F1 UID FETCH *\nS: F1 OK x"}, false},
		{"refused", false, []string{again + "C: F1 UID FETCH *\nS: F1 NO [LIMIT] x"}, false},
		{"renumbered", false, []string{strings.Replace(again, "UIDVALIDITY 7", "UIDVALIDITY 8", 1)}, false},
		{"nobody there", false, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.stable {
				offset := 12000
				test.scripts[0] = strings.Replace(test.scripts[0], "[]<*", fmt.Sprintf("[]<%d.%d>)", offset, len(body)-offset), 1)
				test.scripts[0] = strings.Replace(test.scripts[0], "<rest>", fmt.Sprintf(`* 1 FETCH (UID 11 BODY[]<%d> {%d}\r\n%s)\r\nF1 OK x\r\n`, offset, len(body)-offset, escape(body[offset:])), 1)
			}
			r := faulty(t, &Backend{StableBodies: test.stable}, append([]string{opened(len(body)) + row(body, 12000) + lost}, test.scripts...)...)
			if _, err := io.WriteString(r.conn, "RETR 1\r\nQUIT\r\n"); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(r.conn)
			want := "+OK Message follows\r\n" + strings.ReplaceAll(body, ".", "..") + ".\r\n+OK Goodbye\r\n"
			switch {
			case test.complete && string(got) != want:
				t.Errorf("%d octets, ending in %q, want %d", len(got), got[max(0, len(got)-40):], len(want))
			case !test.complete && (!strings.HasPrefix(want, string(got)) || strings.Contains(string(got), "\r\n.\r\n")):
				t.Errorf("%d octets, ending in %q", len(got), got[max(0, len(got)-40):])
			}
		})
	}
}

// Criterion: after a change of UIDVALIDITY no message is retrieved and none is deleted.
func TestRenumberedMailbox(t *testing.T) {
	const renumbered = `\[SYS/TEMP] The maildrop has changed: log in again (session ID42)`
	for name, scripts := range map[string][]string{
		"after a loss": {opened(5, 5) + "S: <EOF>", strings.Replace(again, "UIDVALIDITY 7", "UIDVALIDITY 8", 1) + "C: <EOF>"},
		"meanwhile":    {opened(5, 5) + "C: F1 UID FETCH *\nS: * OK [UIDVALIDITY 8] new\nS: F1 NO x\nC: Q LOGOUT\nS: Q OK x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := faulty(t, &Backend{}, scripts...)
			if len(scripts) == 1 {
				proxytest.Transcript(t, r.conn, "C: RETR 1\nS: -ERR *")
			}
			proxytest.Transcript(t, r.conn, `
				C- DELE 2\r\nRETR 1\r\n
				S: +OK *
				S: -ERR `+renumbered+`
				S: <EOF>
			`)
			_ = r.wait(t)
			told := of[proxy.Reconnected](r.events)
			if len(told) != len(scripts)-1 || len(told) == 1 && told[0].Result != proxy.ReconnectRenumbered {
				t.Errorf("told %+v, want that UIDVALIDITY has changed if there was a reconnection", told)
			}
		})
		t.Run(name+", QUIT", func(t *testing.T) {
			r := faulty(t, &Backend{}, scripts...)
			if len(scripts) == 1 {
				proxytest.Transcript(t, r.conn, "C: RETR 1\nS: -ERR *")
			}
			proxytest.Transcript(t, r.conn, `
				C- DELE 2\r\nQUIT\r\n
				S: +OK *
				S: -ERR \[SYS/TEMP] *
				S: <EOF>
			`)
		})
	}
}

// Criterion: a QUIT whose server is lost before it has answered is done again on a new connection.
func TestQUITIsDoneAgain(t *testing.T) {
	const update = "C: T1 UID STORE 11 +FLAGS.SILENT (\\\\Deleted)\nS: T1 OK x\nC: T2 UID EXPUNGE 11\n"
	r := faulty(t, &Backend{}, opened(5)+update+"S: <EOF>", again+update+"S: T2 OK x\nC: Q LOGOUT\nS: Q OK x")
	proxytest.Transcript(t, r.conn, `
		C: DELE 1
		S: +OK *
		C: QUIT
		S: +OK Goodbye
		S: <EOF>
	`)
	if failed := of[proxy.UpdateFailed](r.events); len(failed) > 0 {
		t.Errorf("UpdateFailed: %+v", failed)
	}
}

// Criterion: codes and texts of the IMAP server never reach the client.
func TestServersWordsStayInside(t *testing.T) {
	for _, code := range []string{"LIMIT", "THROTTLED", "OVERQUOTA", "UNAVAILABLE", "SERVERBUG", "EXPUNGEISSUED"} {
		r := scripted(t, opened(5)+"C: F1 UID FETCH *\nS: F1 NO ["+code+"] secret words\nC: T1 UID STORE *\nS: T1 NO ["+code+"] secret words\nC: Q LOGOUT\nS: Q OK x")
		proxytest.Transcript(t, r.conn, `
			C: RETR 1
			S: -ERR \[SYS/TEMP] Message 1 is unavailable: try again later (session ID42)
			C: DELE 1
			S: +OK *
			C: QUIT
			S: -ERR \[SYS/TEMP] Some deleted messages were not removed (session ID42)
			S: <EOF>
		`)
	}
}

// Criterion: a maildrop that can only be read says so to DELE.
func TestReadOnlyMailbox(t *testing.T) {
	r := scripted(t, strings.Replace(opened(5), "[READ-WRITE]", "[READ-ONLY]", 1)+"C: Q LOGOUT\nS: Q OK x")
	proxytest.Transcript(t, r.conn, `
		C: DELE 1
		S: -ERR \[SYS/PERM] The maildrop can only be read (session ID42)
		C: QUIT
		S: +OK Goodbye
	`)
}

// Criterion: a body of another size than the server said is counted, unless the server's sizes are estimates.
func TestEstimatesAreNoMismatch(t *testing.T) {
	for _, estimates := range []bool{false, true} {
		b := &Backend{}
		r := faulty(t, b, opened(100)+"C: F1 UID FETCH 11 (UID BODY.PEEK[])\nS- * 1 FETCH (UID 11 BODY[] {5}\\r\\nabc\\r\\n)\\r\\nF1 OK x\\r\\n\n")
		b.Estimates = estimates
		r.session.(*session).sizesExact = true
		proxytest.Transcript(t, r.conn, "C: RETR 1\nS: +OK *\nS: abc\nS: .")
		_ = r.wait(t)
		if sent := of[proxy.MessageSent](r.events); len(sent) != 1 || sent[0].Mismatched == estimates {
			t.Errorf("with estimates: %t: %+v", estimates, sent)
		}
	}
}
