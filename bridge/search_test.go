package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestResultsOfSearch(t *testing.T) {
	for _, test := range []struct {
		name, in, want string
		err            error
	}{
		{"a row", "* SEARCH 1 2 3 5\r\n", "1:3,5", nil},
		{"nothing found", "* SEARCH\r\n", "", nil},
		{"spaces and zeros", "*  search  007  9 \r\n", "7,9", nil},
		{"in two rows", "* SEARCH 9 4\r\n* SEARCH 5\r\n", "4:5,9", nil},
		{"twice", "* SEARCH 1 2\r\n* SEARCH 1 2\r\n", "1:2", nil},
		{"with MODSEQ", "* SEARCH 2 4 (MODSEQ 99999999999)\r\n", "2,4", nil},
		{"the last UID there can be", "* SEARCH 4294967295 1 4294967294\r\n", "1,4294967294:4294967295", nil},
		{"ranges", "* ESEARCH (TAG \"T1\") UID ALL 5:3,9,10\r\n", "3:5,9:10", nil},
		{"ranges in lower case", "* esearch (tag T1)  uid  all  1 \r\n", "1", nil},
		{"ranges without a tag", "* ESEARCH UID COUNT 1 ALL 1\r\n", "1", nil},
		{"nothing in ranges", "* ESEARCH (TAG \"T1\") UID\r\n", "", nil},
		{"none counted", "* ESEARCH (TAG \"T1\") UID COUNT 0 MODSEQ 7\r\n", "", nil},
		{"no row", "", "", errNoResult},
		{"a row of another command", "* ESEARCH (TAG \"T9\") UID ALL 1\r\n", "", errNoResult},
		{"counted, and not told", "* ESEARCH (TAG \"T1\") UID COUNT 3\r\n", "", errNoResult},
		{"no UIDs", "* ESEARCH (TAG \"T1\") ALL 1\r\n", "", errNotUIDs},
		{"no UIDs, none found", "* ESEARCH (TAG \"T1\")\r\n", "", errNotUIDs},
		{"UID 0", "* SEARCH 0\r\n", "", errAnswer},
		{"more than 32 bits", "* SEARCH 4294967296\r\n", "", errAnswer},
		{"words", "* SEARCH 1 two\r\n", "", errAnswer},
		{"a star", "* ESEARCH (TAG \"T1\") UID ALL 1:*\r\n", "", errAnswer},
		{"more than there can be", "* ESEARCH (TAG \"T1\") UID ALL 1:4294967295\r\n", "", errTooMany},
	} {
		r := newResponses(strings.NewReader(test.in + "T1 OK x\r\n"))
		result := &result{tag: "T1"}
		r.result.Store(result)
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		got, err := result.uids()
		if got.String() != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %s, %v, want %s, %v", test.name, got, err, test.want, test.err)
		}
	}
}

// Criterion: no answer to SEARCH costs more than linear work: a million UIDs in the wrong order are read in a moment.
func TestAMillionUIDsInTheWrongOrderAreReadInAMoment(t *testing.T) {
	var line strings.Builder
	line.WriteString("* SEARCH")
	for uid := 2_000_000; uid > 0; uid -= 2 {
		fmt.Fprintf(&line, " %d", uid)
	}
	r := newResponses(strings.NewReader(line.String() + "\r\n"))
	result := &result{}
	r.result.Store(result)
	begun := time.Now()
	_, err := io.Copy(io.Discard, r)
	got, resultErr := result.uids()
	if took := time.Since(begun); err != nil || resultErr != nil || len(got) != 1_000_000 || took > 20*time.Second {
		t.Errorf("%d ranges after %v, %v, %v", len(got), took, err, resultErr)
	}
}

func TestSetsAreUnited(t *testing.T) {
	set := uidSet{{Start: 7, Stop: 9}, {Start: 1, Stop: 2}, {Start: 3, Stop: 3}, {Start: 8, Stop: 8}, {Start: 4294967295, Stop: 4294967295}}.normalize()
	if got := imap.UIDSet(set).String(); got != "1:3,7:9,4294967295" || set.count() != 7 {
		t.Errorf("normalize = %s, %d", got, set.count())
	}
	for uid, want := range map[uint32]bool{0: false, 1: true, 3: true, 4: false, 6: false, 7: true, 9: true, 10: false, 4294967295: true} {
		if got := set.has(uid); got != want {
			t.Errorf("has(%d) = %v", uid, got)
		}
	}
}

// Criterion: a search that is answered OK without a result is no answer: it never means that a message is gone.
func TestASearchWithoutAResultIsNoAnswer(t *testing.T) {
	for _, test := range []struct{ name, script, want string }{
		{"no UIDs, then plain", `
			S: * ESEARCH (TAG "T1") ALL 1:2
			S: T1 OK x
			C: T2 UID SEARCH ALL
			S: * SEARCH 5 9
			S: T2 OK x`, "5,9"},
		{"refused as unknown, then plain", "S: T1 OK x\nC: T2 UID SEARCH ALL\nS: * ESEARCH UID ALL 5\nS: T2 OK x", "5"},
		{"no UIDs, and nothing", "S: * ESEARCH (TAG \"T1\") ALL 1:2\nS: T1 OK x\nC: T2 UID SEARCH ALL\nS: T2 OK x", "error"},
		{"NO", "S: T1 NO [LIMIT] x", "error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 UID SEARCH RETURN (ALL) ALL\n"+test.script+"\nC: Q LOGOUT\nS: Q OK x")
			in := newInbox(near, "IMAP4rev1 ESEARCH", time.Second)
			found, err := in.all(t.Context())
			if got := found.String(); (err == nil) != (test.want != "error") || err == nil && got != test.want {
				t.Errorf("all = %s, %v, want %s", got, err, test.want)
			}
			if errors.Is(err, proxy.ErrBackendClosed) {
				t.Errorf("%v: the connection is as good as before", err)
			}
			_ = in.close()
		})
	}
}

// Criterion: SELECT that is answered OK without EXISTS or without UIDVALIDITY opens nothing.
func TestSelectWithoutWhatIsNeededIsNoAnswer(t *testing.T) {
	const one, of7 = "S: * 1 EXISTS\n", "S: * OK [UIDVALIDITY 7] x\n"
	for _, test := range []struct {
		name, told string
		want       view
		ok         bool
	}{
		{"all", one + of7 + "S: * OK [UIDNEXT 8] x\n", view{7, 8, 1, -1}, true},
		{"liberties", "S: *  001  exists\nS: * ok  [uidvalidity  007]\nS: * [UIDNEXT 8]\nS: * OK [UIDNEXT 8]\n", view{7, 8, 1, -1}, true},
		{"codes in the tagged line", one + of7, view{7, 0, 1, -1}, true},
		{"UIDNEXT 0", one + of7 + "S: * OK [UIDNEXT 0] x\n", view{7, 0, 1, -1}, true},
		{"one removed since", "S: * 2 EXISTS\n" + of7 + "S: * 1 EXPUNGE\n", view{7, 0, 1, -1}, true},
		{"no UIDVALIDITY of nothing", "S: * 0 EXISTS\nS: * OK [UIDVALIDITY 0] x\n", view{0, 0, 0, -1}, true},
		{"UIDVALIDITY 0 of a message", one + "S: * OK [UIDVALIDITY 0] x\n", view{}, false},
		{"no UIDVALIDITY", one, view{}, false},
		{"no EXISTS", of7, view{}, false},
		{"EXISTS of more than 32 bits", "S: * 4294967296 EXISTS\n" + of7, view{}, false},
		{"UIDNEXT of more than 32 bits", one + of7 + "S: * OK [UIDNEXT 4294967296] x\n", view{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 SELECT INBOX\n"+test.told+"S: T1 OK [READ-WRITE] x\nC: Q LOGOUT\nS: Q OK x")
			in := newInbox(near, "IMAP4rev1", time.Second)
			got, err := in.look(t.Context(), false)
			if got != test.want || (err == nil) != test.ok || err != nil && !errors.Is(err, errAnswer) {
				t.Errorf("look = %+v, %v, want %+v", got, err, test.want)
			}
			_ = in.close()
		})
	}
}

func TestMailboxCounts(t *testing.T) {
	r := newResponses(strings.NewReader("* 2 EXPUNGE\r\n* 5 EXISTS\r\n* 1 EXPUNGE\r\n* VANISHED 7:8\r\n* VANISHED (EARLIER) 1:99\r\n"))
	if n, ok := r.mailbox.count(); n != 0 || ok {
		t.Errorf("count before EXISTS = %d, %v", n, ok)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	if n, ok := r.mailbox.count(); n != 2 || !ok || r.mailbox.removals() != 4 {
		t.Errorf("count = %d, %v, %d removals, want 2, true, 4", n, ok, r.mailbox.removals())
	}
	r.mailbox.reset()
	if n, ok := r.mailbox.count(); n != 0 || ok || r.mailbox.removals() != 0 {
		t.Errorf("after reset: %d, %v, %d", n, ok, r.mailbox.removals())
	}
}

// Criterion: folder names that are no modified UTF-7 keep nothing from being deleted, and the name of the trash mailbox goes back as it came.
func TestNamesOfMailboxesAreOctets(t *testing.T) {
	for _, test := range []struct{ name, rows, want string }{
		{"others that are none", `S- * LIST (\\Marked) "|" "R&D"\r\n* LIST () NIL "Entw\xfcrfe"\r\n* LIST () "/" &BBAEMQQyACYE&-\r\n* LIST (\\Trash) "/" Bin\r\n`, `"Bin"`},
		{"no UTF-7", `S- * list (\\HasNoChildren \\trash) "/" "Gel\xf6scht &"\r\n`, `"Gel` + escape("\xf6") + `scht &"`},
		{"a literal", `S- * LIST (\\Trash) "/" {5}\r\na "b\\\r\n`, `"a \\"b\\\\"`},
		{"one that cannot be opened", `S- * LIST (\\Noselect \\Trash) "/" A\r\n* LIST (\\Trash) "/" "B C" ("CHILDINFO" ("SUBSCRIBED"))\r\n`, `"B C"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 LIST \"\" \"*\"\n"+test.rows+"\nS: T1 OK x\nC: T2 UID MOVE 11 "+test.want+"\nS: T2 OK [COPYUID 8 1 x\nC: Q LOGOUT\nS: Q OK x")
			in := newInbox(near, "IMAP4rev1 MOVE", time.Second)
			name, err := in.trash(t.Context())
			if err != nil || name == nil {
				t.Fatalf("trash = %q, %v", name, err)
			}
			end := in.begin(t.Context())
			if _, err := in.move(imap.UIDSetNum(11), name).Wait(); err != nil {
				t.Errorf("MOVE: %v", err)
			}
			end()
			_ = in.close()
		})
	}
}

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
	if err := r.wait(t); !errors.Is(err, errSyntax) || !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Run = %v, want %v", err, errSyntax)
	}
	if n := b.suspects.get("alice", "0000000b00000007").cuts; n != 1 {
		t.Errorf("%d cuts are remembered, want 1", n)
	}
}

// Criterion: a body that was cut twice is refused before +OK for an hour, and the client goes on with the next message.
func TestABodyThatWasCutTwiceIsRefused(t *testing.T) {
	b := &Backend{}
	b.suspects.change("alice", "0000000b00000007", func(s *suspect) { *s = suspect{cuts: mostCuts, since: time.Now()} })
	r := faulty(t, b, opened(5, 5)+"C: F1 UID FETCH 12 *\n"+rows("F1", 12))
	proxytest.Transcript(t, r.conn, "C: RETR 1\nS: -ERR \\[SYS/TEMP] *\nC: DELE 1\nS: -ERR \\[SYS/TEMP] *\nC: RETR 2\n"+got(12))
	synctest.Test(t, func(t *testing.T) {
		s := suspect{cuts: mostCuts, since: time.Now()}
		time.Sleep(suspectTime - time.Second)
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
		var u suspects
		for uid := range uint32(maxSuspects + 10) {
			u.change("alice", strconv.Itoa(int(uid)), func(s *suspect) { s.cuts, s.since = 1, time.Now() })
			time.Sleep(time.Second)
		}
		if len(u.entries) != maxSuspects || u.get("alice", "9").cuts != 0 || u.get("alice", "10").cuts != 1 {
			t.Errorf("%d remembered, the oldest is not forgotten", len(u.entries))
		}
		u.change("alice", "10", func(s *suspect) { *s = suspect{} })
		if len(u.entries) != maxSuspects-1 {
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
			r.session.(*session).probed = true
			proxytest.Transcript(t, r.conn, "C: RETR 1\n"+got(11)+"C: RETR 2\nS: +OK *\nS- "+escape(short)+".\\r\\n\nC: DELE 2\n"+test.want)
		})
	}
	t.Run("of a server that is always wrong", func(t *testing.T) {
		b := &Backend{}
		r := faulty(t, b, opened(7, 100)+strings.ReplaceAll(row("F1", short), "F2", "F1"))
		b.Estimates = false
		b.suspects.differed = fewDiffer
		r.session.(*session).probed = true
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

// Criterion: a server that sends an octet a second ends no later than one that sends none for long.
func TestAServerThatDripsIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.ReadAtLeast(far, make([]byte, 100), 10)
			for {
				if _, err := far.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		in := newInbox(near, "IMAP4rev1", 30*time.Second)
		begun := time.Now()
		_, err := in.search(t.Context())
		if took := time.Since(begun); !errors.Is(err, errStalled) || took > 6*time.Minute {
			t.Errorf("search = %v after %v, want %v after 5 minutes", err, took, errStalled)
		}
		in.discard()
		<-done
	})
}

// FuzzLiberties: what a server may write in several ways means the same.
func FuzzLiberties(f *testing.F) {
	for i := range len(liberties) {
		f.Add(uint8(i), uint16(i), uint32(5), uint32(900))
	}
	f.Add(uint8(255), uint16(99), uint32(1), uint32(4294967295))
	f.Fuzz(func(t *testing.T, which uint8, where uint16, a, b uint32) {
		a, b = max(a, 1), max(b, 1)
		dialogue := fmt.Sprintf("* %d EXISTS\r\n* OK [UIDVALIDITY %d] x\r\n* OK [UIDNEXT %d] x\r\n* 1 FETCH (UID %d RFC822.SIZE 9)\r\n* SEARCH %d %d\r\n* ESEARCH (TAG \"T1\") UID ALL %d\r\n* LIST (\\Trash) \"/\" Bin\r\nT1 OK x\r\n", b, a, b, a, a, b, b)
		want := read(t, dialogue)
		for range 4 {
			dialogue = liberties[int(which)%len(liberties)](dialogue, int(where))
			which, where = which*7+1, where*31+7
		}
		dialogue = strings.ReplaceAll(dialogue, "\x01", "{3}\r\nBin") // a literal is as it is
		if got := read(t, dialogue); got != want {
			t.Errorf("%q\nmeans %s, want %s", dialogue, got, want)
		}
		row := fmt.Sprintf("* 1 FETCH (UID %d RFC822.SIZE 9 BODY[] \x02 INTERNALDATE \"x\")\r\nF1 OK x\r\n", a)
		want = fmt.Sprintf("%d 9 x 0EXISTS) \r <nil>", a)
		for range 4 {
			row = liberties[int(which)%len(liberties)](row, int(where))
			which, where = which*7+1, where*31+7
		}
		row = strings.ReplaceAll(row, "\x02", "{10}\r\n0EXISTS) \r")
		if got := readRow(row); got != want {
			t.Errorf("%q\nmeans %s, want %s", row, got, want)
		}
	})
}

// read returns what a dialogue means.
func read(t *testing.T, dialogue string) string {
	r := newResponses(strings.NewReader(dialogue))
	result, listing, lists := &result{tag: "T1"}, &listing{}, &lists{}
	r.result.Store(result)
	r.listing.Store(listing)
	r.mailbox.lists = lists
	passed, err := io.ReadAll(r)
	if err != nil || len(passed) == 0 {
		t.Errorf("%q: %q, %v", dialogue, passed, err)
	}
	uids, err := result.uids()
	n, ok := r.mailbox.count()
	listing.tidy()
	return fmt.Sprint(uids, err, n, ok, r.mailbox.uidValidity, r.mailbox.uidNext, r.mailbox.odd, listing.messages, listing.odd, string(lists.trash))
}

// readRow returns what the answer to a FETCH means.
func readRow(dialogue string) string {
	in := newInbox(dialogueConn{r: strings.NewReader(dialogue)}, "IMAP4rev1", time.Second)
	var b strings.Builder
	var body []byte
	err := in.rows(context.Background(), imap.UIDSet{{Start: 1}}, itemsWhole, func(s *section) error {
		return s.each(func(chunk []byte) { body = append(body, chunk...) })
	}, func(r *row) { fmt.Fprintf(&b, "%d %d %s %s ", r.uid, r.octets, r.date, body) })
	return b.String() + fmt.Sprint(err)
}

// A dialogueConn is a connection on which all has been said.
type dialogueConn struct {
	net.Conn
	r io.Reader
}

func (c dialogueConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c dialogueConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c dialogueConn) SetReadDeadline(time.Time) error  { return nil }
func (c dialogueConn) SetWriteDeadline(time.Time) error { return nil }
func (c dialogueConn) Close() error                     { return nil }

// liberties rewrite a dialogue at the n-th place where they fit, if there is one.
var liberties = []func(dialogue string, n int) string{
	at(" ", "  "),
	at("\r\n", " \r\n"),
	at("\r\n", "\n"),
	at("\r\n", "\r\n\r\n"),
	at("\r\n", "\r\n* OK still here\r\n"),
	at("\r\n", "\r\n* 9 FETCH (FLAGS (\\Seen))\r\n"),
	at("\r\n", "\r\n* LIST () \"/\" \"R&D\"\r\n"),
	at("] x", "]"),
	at("EXISTS", "exists"), at("FETCH", "Fetch"), at("SEARCH", "search"), at("OK", "ok"), at("UID ", "uid "), at("RFC822.SIZE", "rfc822.size"),
	at(" [UID", " [uid"),
	at(" 9)", " 009)"),
	at(" Bin", " \"Bin\""), at(" Bin", " \x01"), at(" Bin", "\x01"), at(" \x02", "\x02"),
	at("* SEARCH ", "* SEARCH\r\n* SEARCH "),
	at("(UID ", "(FLAGS (\\Seen \"(\") UID "), at("(UID ", "( UID "),
	at("* OK [UID", "* [UID"),
}

// at replaces old by new at the n-th place, modulo how many there are.
func at(old, replacement string) func(string, int) string {
	return func(s string, n int) string {
		places := strings.Count(s, old)
		if places == 0 {
			return s
		}
		parts := strings.Split(s, old)
		n %= places
		return strings.Join(slices.Concat(parts[:n], []string{parts[n] + replacement + parts[n+1]}, parts[n+2:]), old)
	}
}
