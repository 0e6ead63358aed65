package bridge

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: a message is complete only if the server's response is: behind octets of the wrong number comes no final dot, and DELE is refused.
func TestALiteralOfTheWrongLength(t *testing.T) {
	for _, test := range []struct{ name, row string }{
		{"too long, filled by the next row", `* 1 FETCH (UID 11 BODY[] {20}\r\nabc\r\n)\r\n* 2 FETCH (UID 12 BODY[] {5}\r\nabc\r\n)\r\n`},
		{"too short", `* 1 FETCH (UID 11 BODY[] {3}\r\nabc\r\n)\r\n`},
		{"of another message", `* 1 FETCH (BODY[] {5}\r\nabc\r\n UID 12)\r\n`},
		{"without an end", `* 1 FETCH (UID 11 BODY[] {5}\r\nabc\r\n FLAGS)\r\n`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			scripts := []string{opened(5, 5) + "C: F1 UID FETCH 11 *\nS- " + test.row + `F1 OK x\r\n`, again + "C: F1 UID FETCH 12 *\n" + rows("F1", 12)}
			if test.name == "of another message" { // found at the end of the row: too late for -ERR
				r := faulty(t, &Backend{}, scripts[0])
				_, _ = io.WriteString(r.conn, "RETR 1\r\n")
				if got, _ := io.ReadAll(r.conn); strings.HasSuffix(string(got), "\r\n.\r\n") {
					t.Errorf("complete: %q", got)
				}
				return
			}
			r := faulty(t, &Backend{}, scripts...)
			proxytest.Transcript(t, r.conn, `
				C: RETR 1
				S: -ERR \[SYS/TEMP] Message 1 is unavailable: try again later (session ID42)
				C: DELE 1
				S: -ERR \[SYS/TEMP] *
				C: RETR 2
				`+got(12))
		})
	}
}

func TestALargeLiteralOfTheWrongLengthIsCut(t *testing.T) {
	body := strings.Repeat("0123456789abcd\r\n", 1000)
	b := &Backend{}
	r := faulty(t, b, opened(len(body))+"C: F1 UID FETCH 11 *\nS- * 1 FETCH (UID 11 BODY[] {15990}\\r\\n"+escape(body)+`)\r\nF1 OK x\r\n`)
	_, _ = io.WriteString(r.conn, "RETR 1\r\n")
	if got, _ := io.ReadAll(r.conn); strings.HasSuffix(string(got), "\r\n.\r\n") {
		t.Errorf("got %d octets, ending in %q", len(got), got[max(0, len(got)-20):])
	}
	if err := r.wait(t); !errors.Is(err, inbox.ErrSyntax) || !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Run = %v, want %v", err, inbox.ErrSyntax)
	}
	if n := b.faults.get("alice", "0000000b00000007").cuts; n != 1 {
		t.Errorf("%d cuts are remembered, want 1", n)
	}
}

// Criterion: a body that was cut twice is refused before +OK for an hour, and the client goes on with the next message.
func TestABodyThatWasCutTwiceIsRefused(t *testing.T) {
	b := &Backend{}
	b.faults.change("alice", "0000000b00000007", func(s *bodyFault) { *s = bodyFault{cuts: maxCuts, since: time.Now()} })
	r := faulty(t, b, opened(5, 5)+"C: F1 UID FETCH 12 *\n"+rows("F1", 12))
	proxytest.Transcript(t, r.conn, "C: RETR 1\nS: -ERR \\[SYS/TEMP] *\nC: DELE 1\nS: -ERR \\[SYS/TEMP] *\nC: RETR 2\n"+got(12))
	synctest.Test(t, func(t *testing.T) {
		s := bodyFault{cuts: maxCuts, since: time.Now()}
		time.Sleep(faultTime - time.Second)
		if !s.refused() {
			t.Error("not refused within the hour")
		}
		time.Sleep(time.Second)
		if s.refused() {
			t.Error("refused after an hour")
		}
	})
}

func TestSuspectsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u faultList
		for uid := range uint32(maxFaults + 10) {
			u.change("alice", strconv.Itoa(int(uid)), func(s *bodyFault) { s.cuts, s.since = 1, time.Now() })
			time.Sleep(time.Second)
		}
		if len(u.entries) != maxFaults || u.get("alice", "9").cuts != 0 || u.get("alice", "10").cuts != 1 {
			t.Errorf("%d remembered, the oldest is not forgotten", len(u.entries))
		}
		u.change("alice", "10", func(s *bodyFault) { *s = bodyFault{} })
		if len(u.entries) != maxFaults-1 {
			t.Errorf("%d remembered, one came well", len(u.entries))
		}
	})
}

// Criterion: where sizes have agreed, a message of another size is deleted only after its octets have come a second time.
func TestAMessageOfAnotherSizeIsDoubtful(t *testing.T) {
	row := func(tag, body string) string {
		return fmt.Sprintf("C: %s UID FETCH 12 *\nS- * 2 FETCH (UID 12 BODY[] {%d}\\r\\n%s)\\r\\n%s OK x\\r\\n\n", tag, len(body), escape(body), tag)
	}
	const short, other = "Subject: x\r\n\r\nshort\r\n", "Subject: x\r\n\r\nother\r\n"
	for _, test := range []struct{ name, script, want string }{
		{"the same again", row("F3", short), "S: +OK *\n"},
		{"other octets", row("F3", other), "S: -ERR \\[SYS/TEMP] *\n"},
		{"refused", "C: F3 UID FETCH 12 *\nS: F3 NO x\n", "S: -ERR \\[SYS/TEMP] *\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := &Backend{}
			r := faulty(t, b, opened(5, 100)+"C: F1 UID FETCH 11 *\n"+rows("F1", 11)+row("F2", short)+test.script)
			b.Estimates = false
			r.session.(*session).sizesExact = true
			proxytest.Transcript(t, r.conn, "C: RETR 1\n"+got(11)+"C: RETR 2\nS: +OK *\nS- "+escape(short)+".\\r\\n\nC: DELE 2\n"+test.want)
		})
	}
	t.Run("of a server that is always wrong", func(t *testing.T) {
		b := &Backend{}
		r := faulty(t, b, opened(7, 100)+strings.ReplaceAll(row("F1", short), "F2", "F1"))
		b.Estimates = false
		b.faults.differed = fewDiffer
		r.session.(*session).sizesExact = true
		proxytest.Transcript(t, r.conn, "C: RETR 2\nS: +OK *\nS- "+escape(short)+".\\r\\n\nC: DELE 2\nS: +OK *")
	})
}

// Criterion: a message is said to be gone only if a search says so.
func TestAFetchWithoutARowIsNoProof(t *testing.T) {
	for _, test := range []struct{ name, search, want string }{
		{"it is there", "S: * SEARCH 11\nS: T1 OK x", "S: -ERR \\[SYS/TEMP] Message 1 is unavailable*"},
		{"it is not, and the server says that it was removed", "S: * 1 EXPUNGE\nS: * SEARCH\nS: T1 OK x", "S: -ERR Message 1 is no longer in the maildrop"},
		{"it is not, twice", "S: * SEARCH\nS: T1 OK x\nC: T2 NOOP\nS: T2 OK x\nC: T3 UID SEARCH UID 11\nS: * SEARCH\nS: T3 OK x", "S: -ERR Message 1 is no longer in the maildrop"},
		{"it is not, the first time", "S: * SEARCH\nS: T1 OK x\nC: T2 NOOP\nS: T2 OK x\nC: T3 UID SEARCH UID 11\nS: * SEARCH 11\nS: T3 OK x", "S: -ERR \\[SYS/TEMP] Message 1 is unavailable*"},
		{"no result", "S: T1 OK x", "S: -ERR \\[SYS/TEMP] Message 1 is unavailable*"},
		{"NO", "S: T1 NO x", "S: -ERR \\[SYS/TEMP] Message 1 is unavailable*"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := faulty(t, &Backend{}, opened(5)+"C: F1 UID FETCH 11 *\nS: F1 OK x\nC: T1 UID SEARCH UID 11\n"+test.search)
			proxytest.Transcript(t, r.conn, "C: RETR 1\n"+test.want)
		})
	}
}
