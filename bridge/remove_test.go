package bridge

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: QUIT says +OK only after the tagged OK of every step, and never sends a bare EXPUNGE.
func TestQUITRemovesWhatWasMarked(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5, 5, 5, 5, 5))
	r := run(t, &Backend{LogIn: connected(near, capabilities)})
	proxytest.Transcript(t, r.conn, `
		C- DELE 1\r\nDELE 2\r\nDELE 3\r\nRSET\r\nDELE 4\r\nDELE 2\r\nDELE 1\r\nQUIT\r\n
		S: +OK *
		S: +OK *
		S: +OK *
		S: +OK *
		S: +OK *
		S: +OK *
		S: +OK *
	`)
	// From here on the server is the client of its transcripts.
	proxytest.Transcript(t, far, `
		S: T1 UID STORE 11:12,14 +FLAGS.SILENT (\\Deleted)
		C: * 1 FETCH (FLAGS (\Deleted))
		C: T1 OK x
		S: T2 UID EXPUNGE 11:12,14
		C: * 1 EXPUNGE
		C: * 1 EXPUNGE
		C: * 2 EXPUNGE
	`)
	_ = r.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := r.conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("QUIT is answered before EXPUNGE is: %d, %v", n, err)
	}
	proxytest.Transcript(t, far, "C: T2 OK x\nS: Q LOGOUT\nC: Q OK x")
	proxytest.Transcript(t, r.conn, "S: +OK Goodbye\nS: <EOF>")
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	if got := r.session.(proxy.Reporter).Totals().Deleted; got != 3 {
		t.Errorf("%d deleted, want 3", got)
	}
}

// Criterion: without UIDPLUS only the flag is set, never EXPUNGE, never CLOSE, and POP3 does not show the message any more.
func TestQUITWithoutUIDPLUS(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, `
		C: T1 SELECT INBOX
		C: T2 UID SEARCH KEYWORD $POP3Deleted
		S: * 2 EXISTS
		S: * OK [UIDVALIDITY 7] x
		S: * OK [UIDNEXT 99] next
		S: * OK [PERMANENTFLAGS (\\Deleted \\*)] x
		S: T1 OK done
		S: * SEARCH 10
		S: T2 OK done
		C: T3 UID FETCH 1:\* (UID RFC822.SIZE)
		S: * 1 FETCH (UID 10 RFC822.SIZE 4)
		S: * 2 FETCH (UID 11 RFC822.SIZE 5)
		S: T3 OK x
		C: T1 UID STORE 11 +FLAGS.SILENT (\\Deleted $POP3Deleted)
		S: T1 OK x
		C: Q LOGOUT
		S: Q OK x
		C: <EOF>
	`)
	proxytest.Transcript(t, run(t, &Backend{LogIn: connected(near, "IMAP4rev1 IDLE"), Estimates: true}).conn, `
		C: LIST
		S: +OK *
		S: 1 5
		S: .
		C: DELE 1
		S: +OK *
		C: QUIT
		S: +OK *
		S: <EOF>
	`)
}

// Criterion: a QUIT that could not remove what was marked says so.
func TestQUITThatFails(t *testing.T) {
	const store, expunge = "C: T1 UID STORE *\n", "S: T1 OK x\nC: T2 UID EXPUNGE *\n"
	for _, test := range []struct {
		name, script string
		stages       []string
	}{
		{"STORE refused", store + "S: T1 NO [READ-ONLY] x" + bye, []string{"store"}},
		{"EXPUNGE refused", store + expunge + "S: T2 NO [LIMIT] not now" + bye, []string{"expunge"}},
		{"lost", store + expunge + "S: * BYE x\nS: <EOF>", []string{"expunge"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := scripted(t, opened(5)+test.script)
			proxytest.Transcript(t, r.conn, `
				C: DELE 1
				S: +OK *
				C: QUIT
				S: -ERR \[SYS/TEMP] Some deleted messages were not removed (session ID42)
				S: <EOF>
			`)
			if err := r.wait(t); err != nil {
				t.Errorf("Run = %v", err)
			}
			var stages []string
			for _, e := range of[proxy.UpdateFailed](r.events) {
				stages = append(stages, e.Stage)
				if e.Err == nil || e.Client.ID != "ID42" {
					t.Errorf("%+v", e)
				}
			}
			if !slices.Equal(stages, test.stages) {
				t.Errorf("UpdateFailed at %v, want %v", stages, test.stages)
			}
			if got := r.session.(proxy.Reporter).Totals().Deleted; got != 0 {
				t.Errorf("%d deleted, want 0", got)
			}
		})
	}
}

// Criterion: \Seen is best effort: without it QUIT is still +OK.
func TestQUITWithoutSeen(t *testing.T) {
	r := scripted(t, opened(5)+`
		C: F1 UID FETCH *
		S: * 1 FETCH (UID 11 BODY[] {5}
		S: abc
		S: )
		S: F1 OK x
		C: T1 UID STORE 11 +FLAGS.SILENT (\\Seen)
		S: T1 NO x
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: +OK *
		S: abc
		S: .
		C: QUIT
		S: +OK *
		S: <EOF>
	`)
	if failed := of[proxy.UpdateFailed](r.events); len(failed) != 1 || failed[0].Stage != "seen" {
		t.Errorf("UpdateFailed: %+v", failed)
	}
}

// Criterion: QUIT with nothing marked is +OK also when the backend is gone; with a mark it is temporary.
func TestQUITWhenTheServerIsGone(t *testing.T) {
	for dele, want := range map[string]string{"": "+OK Goodbye", "C: DELE 1\nS: +OK *\n": `-ERR \[SYS/TEMP] *`} {
		near, far := proxytest.Pipe(t)
		proxytest.ServeTranscript(t, far, opened(5))
		r := run(t, &Backend{LogIn: connected(near, capabilities)})
		proxytest.Transcript(t, r.conn, "C: NOOP\nS: +OK *")
		_ = far.Close()
		proxytest.Transcript(t, r.conn, dele+"C: QUIT\nS: "+want+"\nS: <EOF>")
	}
}

// Criterion: commands between which the server leaves are told so at the first that needs it.
func TestServerLeavesBetweenCommands(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5)+"S: * BYE Autologout\nS: <EOF>")
	r := run(t, &Backend{LogIn: connected(near, capabilities), Estimates: true})
	proxytest.Transcript(t, r.conn, `
		C: STAT
		S: +OK 1 5
		C: RETR 1
		S: -ERR \[SYS/TEMP] The mail server is unavailable: try again later (session ID42)
		S: <EOF>
	`)
	if err := r.wait(t); !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Run = %v, want %v", err, proxy.ErrBackendClosed)
	}
}

func TestUIDSetsFitIntoCommands(t *testing.T) {
	var scattered []uint32
	for uid := uint32(4_000_000_000); len(scattered) < 3000; uid += 3 {
		scattered = append(scattered, uid, uid+1)
	}
	var back []uint32
	for _, set := range inbox.Sets(scattered) {
		if n := len(set.String()); n > 8<<10 {
			t.Errorf("a set of %d octets", n)
		}
		nums, ok := set.Nums()
		if !ok {
			t.Fatalf("%v is no finite set", set)
		}
		for _, n := range nums {
			back = append(back, uint32(n))
		}
	}
	if !slices.Equal(back, scattered) {
		t.Error("the sets do not have the UIDs they were made of")
	}
	if got := inbox.Sets(nil); got != nil {
		t.Errorf("inbox.Sets(nil) = %v", got)
	}
	if got := inbox.Sets([]uint32{1, 2, 3, 5, 4294967295}); len(got) != 1 || got[0].String() != "1:3,5,4294967295" {
		t.Errorf("got %v", got)
	}
}
