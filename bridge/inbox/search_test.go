package inbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
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
		{"UID 0", "* SEARCH 0\r\n", "", ErrAnswer},
		{"more than 32 bits", "* SEARCH 4294967296\r\n", "", ErrAnswer},
		{"words", "* SEARCH 1 two\r\n", "", ErrAnswer},
		{"a star", "* ESEARCH (TAG \"T1\") UID ALL 1:*\r\n", "", ErrAnswer},
		{"more than there can be", "* ESEARCH (TAG \"T1\") UID ALL 1:4294967295\r\n", "", ErrTooMany},
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
			in := New(near, "IMAP4rev1 ESEARCH", Options{Timeout: time.Second})
			found, err := in.All(t.Context())
			if got := found.String(); (err == nil) != (test.want != "error") || err == nil && got != test.want {
				t.Errorf("All = %s, %v, want %s", got, err, test.want)
			}
			if errors.Is(err, proxy.ErrBackendClosed) {
				t.Errorf("%v: the connection is as good as before", err)
			}
			_ = in.Close()
		})
	}
}

// Criterion: SELECT that is answered OK without EXISTS or without UIDVALIDITY opens nothing.
func TestSelectWithoutWhatIsNeededIsNoAnswer(t *testing.T) {
	const one, of7 = "S: * 1 EXISTS\n", "S: * OK [UIDVALIDITY 7] x\n"
	for _, test := range []struct {
		name, told string
		want       View
		ok         bool
	}{
		{"all", one + of7 + "S: * OK [UIDNEXT 8] x\n", View{7, 8, 1, -1}, true},
		{"liberties", "S: *  001  exists\nS: * ok  [uidvalidity  007]\nS: * [UIDNEXT 8]\nS: * OK [UIDNEXT 8]\n", View{7, 8, 1, -1}, true},
		{"codes in the tagged line", one + of7, View{7, 0, 1, -1}, true},
		{"UIDNEXT 0", one + of7 + "S: * OK [UIDNEXT 0] x\n", View{7, 0, 1, -1}, true},
		{"one removed since", "S: * 2 EXISTS\n" + of7 + "S: * 1 EXPUNGE\n", View{7, 0, 1, -1}, true},
		{"no UIDVALIDITY of nothing", "S: * 0 EXISTS\nS: * OK [UIDVALIDITY 0] x\n", View{0, 0, 0, -1}, true},
		{"UIDVALIDITY 0 of a message", one + "S: * OK [UIDVALIDITY 0] x\n", View{}, false},
		{"no UIDVALIDITY", one, View{}, false},
		{"no EXISTS", of7, View{}, false},
		{"EXISTS of more than 32 bits", "S: * 4294967296 EXISTS\n" + of7, View{}, false},
		{"UIDNEXT of more than 32 bits", one + of7 + "S: * OK [UIDNEXT 4294967296] x\n", View{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 SELECT INBOX\n"+test.told+"S: T1 OK [READ-WRITE] x\nC: Q LOGOUT\nS: Q OK x")
			in := New(near, "IMAP4rev1", Options{Timeout: time.Second})
			got, err := in.Open(t.Context(), false)
			if got != test.want || (err == nil) != test.ok || err != nil && !errors.Is(err, ErrAnswer) {
				t.Errorf("Open = %+v, %v, want %+v", got, err, test.want)
			}
			_ = in.Close()
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
	if n, ok := r.mailbox.count(); n != 2 || !ok || r.mailbox.removed != 4 {
		t.Errorf("count = %d, %v, %d removals, want 2, true, 4", n, ok, r.mailbox.removed)
	}
	r.mailbox.reset()
	if n, ok := r.mailbox.count(); n != 0 || ok || r.mailbox.removed != 0 {
		t.Errorf("after reset: %d, %v, %d", n, ok, r.mailbox.removed)
	}
}

// Criterion: folder names that are no modified UTF-7 keep nothing from being deleted, and the name of the trash mailbox goes back as it came.
func TestNamesOfMailboxesAreOctets(t *testing.T) {
	for _, test := range []struct{ name, rows, want string }{
		{"others that are none", `S- * LIST (\\Marked) "|" "R&D"\r\n* LIST () NIL "Entw\xfcrfe"\r\n* LIST () "/" &BBAEMQQyACYE&-\r\n* LIST (\\Trash) "/" Bin\r\n`, `"Bin"`},
		{"no UTF-7", `S- * list (\\HasNoChildren \\trash) "/" "Gel\xf6scht &"\r\n`, `"Gel\xf6scht &"`},
		{"a literal", `S- * LIST (\\Trash) "/" {5}\r\na "b\\\r\n`, `"a \\"b\\\\"`},
		{"one that cannot be opened", `S- * LIST (\\Noselect \\Trash) "/" A\r\n* LIST (\\Trash) "/" "B C" ("CHILDINFO" ("SUBSCRIBED"))\r\n`, `"B C"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 LIST \"\" \"*\"\n"+test.rows+"\nS: T1 OK x\nC: T2 UID MOVE 11 "+test.want+"\nS: T2 OK [COPYUID 8 1 x\nC: Q LOGOUT\nS: Q OK x")
			in := New(near, "IMAP4rev1 MOVE", Options{Timeout: time.Second})
			name, err := in.TrashMailbox(t.Context())
			if err != nil || name == nil {
				t.Fatalf("TrashMailbox = %q, %v", name, err)
			}
			if err := in.Move(t.Context(), imap.UIDSetNum(11), name)(); err != nil {
				t.Errorf("MOVE: %v", err)
			}
			_ = in.Close()
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
		in := New(near, "IMAP4rev1", Options{Timeout: 30 * time.Second})
		begun := time.Now()
		_, err := in.Search(t.Context())
		if took := time.Since(begun); !errors.Is(err, ErrStalled) || took > 6*time.Minute {
			t.Errorf("Search = %v after %v, want %v after 5 minutes", err, took, ErrStalled)
		}
		in.Discard()
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
	result, list := &result{tag: "T1"}, &listData{}
	var sizes recordedRows
	var rows Rows = &sizes
	r.result.Store(result)
	r.rows.Store(&rows)
	r.mailbox.list = list
	passed, err := io.ReadAll(r)
	if err != nil || len(passed) == 0 {
		t.Errorf("%q: %q, %v", dialogue, passed, err)
	}
	uids, err := result.uids()
	n, ok := r.mailbox.count()
	return fmt.Sprint(uids, err, n, ok, r.mailbox.uidValidity, r.mailbox.uidNext, r.mailbox.malformed, sizes, string(list.trash))
}

// A recordedRows keeps the rows of Sizes, each of them once.
type recordedRows struct {
	rows      []string
	malformed int
}

func (r *recordedRows) Row(_ int64, uid uint32, size int64) {
	row := fmt.Sprint(uid, ":", size)
	if len(r.rows) == 0 || r.rows[len(r.rows)-1] != row {
		r.rows = append(r.rows, row)
	}
}

func (r *recordedRows) MalformedRow() { r.malformed++ }
func (r *recordedRows) Expunged()     {}

// readRow returns what the answer to a FETCH means.
func readRow(dialogue string) string {
	in := New(dialogueConn{r: strings.NewReader(dialogue)}, "IMAP4rev1", Options{Timeout: time.Second})
	var b strings.Builder
	var body []byte
	err := in.fetchAll(context.Background(), imap.UIDSet{{Start: 1}}, Body, func(s *Section) error {
		return s.Each(func(chunk []byte) { body = append(body, chunk...) })
	}, func(r *FetchResponse) { fmt.Fprintf(&b, "%d %d %s %s ", r.UID, r.rfc822Size, r.internalDate, body) })
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
