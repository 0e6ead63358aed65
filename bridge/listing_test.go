package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy/proxytest"
)

func TestListing(t *testing.T) {
	const (
		box    = "C: T1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 20] x\nS: T1 OK x\n"
		old    = "C: T1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: T1 OK x\n"
		fetch  = "C: T2 UID FETCH 1:\\* (UID RFC822.SIZE)\n"
		search = "C: T3 UID SEARCH ALL\n"
	)
	for _, test := range []struct{ name, script, want string }{
		{"in order", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x",
			"11:1 12:2 13:3"},
		{"in another order, one of them twice", box + fetch + "S: * 3 FETCH (RFC822.SIZE 3 UID 13)\nS: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 3 FETCH (UID 13 RFC822.SIZE 9)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: T2 OK x",
			"11:1 12:2 13:3"},
		{"with mail that arrives", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: * 4 EXISTS\nS: * 4 FETCH (UID 20 RFC822.SIZE 4)\nS: T2 OK x",
			"11:1 12:2 13:3"},
		{"among flags", box + fetch + "S: * 1 FETCH (FLAGS (\\Seen) UID 11)\nS: * 1 FETCH (FLAGS (\\Seen a) UID 11 RFC822.SIZE 1 X (\"a)\\\"\" (b)))\nS: * 2 FETCH (FLAGS (\\Seen))\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * XFOO bar\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x",
			"11:1 12:2 13:3"},
		{"without UIDNEXT", old + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 4294967295 RFC822.SIZE 3)\nS: T2 OK x",
			"11:1 12:2 4294967295:3"},
		{"EXPUNGE in the FETCH", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 1 EXPUNGE\nS: * 1 FETCH (UID 12 RFC822.SIZE 2)\nS: * 2 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x\n" + search + "S: * SEARCH 12 13\nS: T3 OK x",
			"12:2 13:3"},
		{"EXPUNGE before its row", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 EXPUNGE\nS: * 2 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x\n" + search + "S: * SEARCH 11 13\nS: T3 OK x",
			"11:1 13:3"},
		{"a row is missing", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 12)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x\n" + search + "S: * 5 EXISTS\nS: * SEARCH 13 12 11 20 21\nS: T3 OK x\nC: T4 UID FETCH 12 (UID RFC822.SIZE)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: T4 OK x",
			"11:1 12:2 13:3"},
		{"a row stays missing", box + fetch + "S: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: T2 NO some messages could not be read\n" + search + "S: * SEARCH 11 12 13\nS: T3 OK x\nC: T4 UID FETCH 11,13 (UID RFC822.SIZE)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T4 NO x\nC: T5 UID FETCH 11 (UID RFC822.SIZE)\nS: T5 NO x",
			"11:1 12:2 13:3"},
		{"all are gone", box + fetch + "S: * 1 EXPUNGE\nS: * 1 EXPUNGE\nS: * 1 EXPUNGE\nS: T2 OK x\n" + search + "S: * SEARCH\nS: T3 OK x", ""},
		{"UIDNEXT is not above all UIDs", strings.Replace(box, "UIDNEXT 20", "UIDNEXT 12", 1) + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x",
			"11:1 12:2 13:3"},
		{"UIDNEXT is not above all UIDs, and a row is missing", strings.Replace(box, "UIDNEXT 20", "UIDNEXT 12", 1) + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T2 OK x\n" + search + "S: * SEARCH 11 12 13\nS: T3 OK x\nC: T4 UID FETCH 12:13 (UID RFC822.SIZE)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T4 OK x",
			"11:1 12:2 13:3"},
		{"the search is half an answer, and whole after NOOP", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: T2 OK x\n" + search + "S: * SEARCH 11\nS: T3 OK x\nC: T4 NOOP\nS: T4 OK x\nC: T5 UID SEARCH ALL\nS: * SEARCH 11 12 13\nS: T5 OK x\nC: T6 UID FETCH 12:13 (UID RFC822.SIZE)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T6 OK x",
			"11:1 12:2 13:3"},
		{"a row of a message that is not there, in place of one that is", box + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 19 RFC822.SIZE 2)\nS: * 3 EXPUNGE\nS: * 3 EXISTS\nS: T2 OK x\n" + search + "S: * SEARCH 11 12 13\nS: T3 OK x\nC: T4 UID FETCH 12:13 (UID RFC822.SIZE)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: T4 OK x",
			"11:1 12:2 13:3"},
		{"one of four is refused, and hides no other", strings.Replace(box, "3 EXISTS", "4 EXISTS", 1) + fetch + "S: T2 NO x\n" + search + "S: * SEARCH 11 12 13 14\nS: T3 OK x\n" +
			"C: T4 UID FETCH 11:14 (UID RFC822.SIZE)\nS: T4 NO x\nC: T5 UID FETCH 11:12 (UID RFC822.SIZE)\nS: T5 NO x\nC: T6 UID FETCH 11 (UID RFC822.SIZE)\nS: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: T6 OK x\n" +
			"C: T7 UID FETCH 12 (UID RFC822.SIZE)\nS: T7 NO x\nC: T8 UID FETCH 13:14 (UID RFC822.SIZE)\nS: * 3 FETCH (UID 13 RFC822.SIZE 3)\nS: * 4 FETCH (UID 14 RFC822.SIZE 4)\nS: T8 OK x",
			"11:1 12:1 13:3 14:4"},
		{"EXISTS changes within SELECT", "C: T1 SELECT INBOX\nS: * 7 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 20] x\nS: * 1 EXISTS\nS: T1 OK x\n" + fetch + "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: T2 OK x",
			"11:1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, test.script)
			in := inbox.New(near, "", inbox.Options{Timeout: defaultTimeout})
			d, err := full(t.Context(), in)
			in.Abort()
			_ = in.Close()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range d.messages {
				got = append(got, fmt.Sprintf("%d:%d", m.uid, m.size))
			}
			if got := strings.Join(got, " "); got != test.want {
				t.Errorf("uid:size = %s, want %s", got, test.want)
			}
		})
	}
}

// Criterion: a listing is shown only if all messages are accounted for: what the server refuses, leaves out or contradicts is temporary.
func TestAListingThatDoesNotAddUpIsNotShown(t *testing.T) {
	const (
		box    = "C: T1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 20] x\nS: T1 OK x\nC: T2 UID FETCH 1:\\* (UID RFC822.SIZE)\n"
		two    = "S: * 1 FETCH (UID 11 RFC822.SIZE 1)\nS: * 2 FETCH (UID 12 RFC822.SIZE 2)\n"
		search = "C: T%d UID SEARCH ALL\n"
	)
	again := func(row string) (script string) { // to each look
		for tag := 3; tag < 9; tag += 2 {
			script += fmt.Sprintf(search+"%sS: T%d OK x\n", tag, row, tag)
			if tag < 7 {
				script += fmt.Sprintf("C: T%d NOOP\nS: T%d OK x\n", tag+1, tag+1)
			}
		}
		return script
	}
	each := func(answer string) string { // to every FETCH of sizes
		return fmt.Sprintf("S: T2 %[1]s\n"+search+"S: * SEARCH 11 12 13\nS: T3 OK x\nC: T4 UID FETCH 11:13 (UID RFC822.SIZE)\nS: T4 %[1]s\nC: T5 UID FETCH 11 (UID RFC822.SIZE)\nS: T5 %[1]s\n"+
			"C: T6 UID FETCH 12:13 (UID RFC822.SIZE)\nS: T6 %[1]s\nC: T7 UID FETCH 12 (UID RFC822.SIZE)\nS: T7 %[1]s\nC: T8 UID FETCH 13 (UID RFC822.SIZE)\nS: T8 %[1]s\n", answer, 3)
	}
	for _, test := range []struct{ name, script string }{
		{"half an answer, and half a search", box + two + "S: T2 OK x\n" + again("S: * SEARCH 11 12\n")},
		{"half an answer, and a search with too much", box + two + "S: T2 OK x\n" + again("S: * SEARCH 11 12 13 14\n")},
		{"half an answer, and an empty search", box + two + "S: T2 OK x\n" + again("S: * SEARCH\n")},
		{"half an answer, and a search that is refused", box + two + "S: T2 OK x\nC: T3 UID SEARCH ALL\nS: T3 NO [UNAVAILABLE] x"},
		{"half an answer, and a search that is none", box + two + "S: T2 OK x\nC: T3 UID SEARCH ALL\nS: T3 BAD x"},
		{"unavailable", box + each("NO [UNAVAILABLE] x")},
		{"throttled", box + each("NO [THROTTLED] x")},
		{"throttled by BAD", box + each("BAD Request is throttled")},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, test.script)
			in := inbox.New(near, "", inbox.Options{Timeout: defaultTimeout})
			_, err := full(t.Context(), in)
			in.Abort()
			_ = in.Close()
			if err == nil {
				t.Error("the listing is shown")
			}
		})
	}
}

// A message that was removed and a row that is missing add up: only the numbers
// of the rows tell.
func TestAMissingRowIsNotMadeUpForByARemovedMessage(t *testing.T) {
	for name, rows := range map[string]string{
		"a row is missing":           "S: * 2 FETCH (UID 13 RFC822.SIZE 3)\nS: * 4 FETCH (UID 15 RFC822.SIZE 5)\n",
		"that of the last known too": "S: * 4 FETCH (UID 15 RFC822.SIZE 5)\n",
	} {
		t.Run(name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 SELECT INBOX\nS: * 4 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 16] x\nS: T1 OK x\nC: T2 UID FETCH 13:\\* (UID RFC822.SIZE)\n"+rows+
				"S: T2 OK x\nC: T3 UID SEARCH ALL\nS: * SEARCH 11 13 14 15\nS: T3 OK x\nC: T4 UID FETCH 14 (UID RFC822.SIZE)\nS: * 3 FETCH (UID 14 RFC822.SIZE 4)\nS: T4 OK x\n")
			in := inbox.New(near, "", inbox.Options{Timeout: defaultTimeout})
			defer func() { in.Abort(); _ = in.Close() }()
			v, err := in.Open(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			l := newListing(v, snapshot{uidValidity: 7, uidNext: 14, proven: true, messages: []message{{uid: 11, size: 1}, {uid: 12, size: 2}, {uid: 13, size: 3}}}, nil)
			if _, err := l.update(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			if want := []message{{uid: 11, size: 1}, {uid: 13, size: 3}, {uid: 14, size: 4}, {uid: 15, size: 5}}; !slices.Equal(l.messages, want) {
				t.Errorf("listed %v, want %v", l.messages, want)
			}
		})
	}
}

// full lists INBOX of which nothing is remembered.
func full(ctx context.Context, in *inbox.Inbox) (*listing, error) {
	v, err := in.Open(ctx, false)
	if err != nil {
		return nil, err
	}
	l := newListing(v, snapshot{}, nil)
	_, err = l.update(ctx, in)
	return l, err
}

func TestKeepAccountsForAllThatIsPresent(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		l := &listing{}
		if random.IntN(2) == 0 {
			l.UIDNext = uint32(random.IntN(30))
		}
		rows, present := make(map[uint32]bool), make(map[uint32]bool)
		var set imap.UIDSet
		for uid := range uint32(30) {
			uid := uid + 1
			if random.IntN(2) == 0 {
				l.Row(int64(uid), uid, 1)
				rows[uid] = l.UIDNext == 0 || uid < l.UIDNext
			}
			if random.IntN(3) > 0 {
				present[uid] = true
				set.AddNum(imap.UID(uid))
			}
		}
		missing := l.retain(set)
		for uid := uint32(1); uid <= 30; uid++ {
			kept := slices.ContainsFunc(l.messages, func(m message) bool { return m.uid == uid })
			if want := rows[uid] && present[uid]; kept != want {
				t.Fatalf("%d is kept: %v, want %v", uid, kept, want)
			}
			want := present[uid] && !rows[uid] && (l.UIDNext == 0 || uid < l.UIDNext)
			if got := missing.Contains(imap.UID(uid)); got != want {
				t.Fatalf("%d is missing: %v, want %v (below %d, present %v, rows %v)", uid, got, want, l.UIDNext, set, rows)
			}
		}
	}
	last := imap.UIDSet{{Start: 4294967290, Stop: 4294967295}}
	l := &listing{messages: []message{{uid: 4294967295}}}
	if got, want := l.retain(last).String(), "4294967290:4294967294"; got != want {
		t.Errorf("missing = %s, want %s", got, want)
	}
}

// Criterion: a session holds at most 24 octets for each message.
func TestMemoryOfAMaildrop(t *testing.T) {
	const n = 50_000
	_, b := benchmarked(t, &fakeIMAP{exists: n, size: 1000})
	if got := testing.AllocsPerRun(1, func() { open(t, b) }); got > 2000 {
		t.Errorf("%v allocations to list %d messages", got, n)
	}
	r := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			l := &listing{messages: make([]message, 0, n)}
			for uid := range uint32(n) {
				l.Row(int64(uid)+1, uid+1, 1000)
			}
			l.sortRows()
			_ = newMaildrop(l.messages, 7)
		}
	})
	if got := r.AllocedBytesPerOp() / n; got > 24 {
		t.Errorf("%d octets a message, want at most 24", got)
	}
}

func BenchmarkListing50000(b *testing.B) {
	_, backend := benchmarked(b, &fakeIMAP{exists: 50_000, size: 1000})
	b.ReportAllocs()
	for b.Loop() {
		open(b, backend)
	}
}

func TestListingIsBounded(t *testing.T) {
	l := &listing{messages: make([]message, inbox.MaxMessages)}
	l.Row(1, 1, 1)
	if len(l.messages) != inbox.MaxMessages || !errors.Is(l.overflow, inbox.ErrTooMany) {
		t.Errorf("%d messages, overflow %v, want %d and an overflow", len(l.messages), l.overflow, inbox.MaxMessages)
	}
}

// Criterion: when a server shows a message again and hides another one (Gmail does), the first RETR that finds it out is the last of that listing.
func TestAMessageThatIsThereAgain(t *testing.T) {
	m := newModel("")
	m.deliver(7)
	all := slices.Clone(m.mails)
	b, _, _, _ := m.bases(t)
	shown(t, b)
	m.expunge(2)
	shown(t, b)
	m.mails = slices.Delete(slices.Clone(all), 4, 5)
	r := run(t, b)
	proxytest.Transcript(t, r.conn, "C: RETR 4\nS: -ERR Message 4 is no longer in the maildrop\nC: QUIT\nS: +OK *")
	_ = r.wait(t)
	ids := shown(t, b)
	for i, x := range m.mails {
		if want := fmt.Sprintf("%08x00000007", x.uid); ids[x.uid] != want || len(ids) != len(m.mails) {
			t.Errorf("of %d messages number %d is %q, want %s", len(ids), i+1, ids[x.uid], want)
		}
	}
}
