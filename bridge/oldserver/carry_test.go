package oldserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// mail returns a message with a header of its own.
func mail(i int) string {
	return fmt.Sprintf("Message-ID: <%d@example.org>\r\nSubject: %d\r\n\r\n%s\r\n", i, i, strings.Repeat("x", 100+i))
}

// open opens the maildrop of alice.
func open(t testing.TB, s *proxytest.POP3Server) *oldserver.Maildrop {
	t.Helper()
	old := &oldserver.Server{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Addr)
	}}
	d, err := old.Open(t.Context(), "alice", proxy.NewSecret([]byte(s.Password)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// inbox returns an INBOX with messages, whose UIDs are 10, 20 and so on.
func inbox(messages []string) oldserver.Inbox {
	in := oldserver.Inbox{UIDValidity: 7, UIDNext: uint32(10*len(messages) + 1)}
	var sizes []int64
	for i, m := range messages {
		in.UIDs = append(in.UIDs, uint32(10*(i+1)))
		sizes = append(sizes, int64(len(m)))
	}
	header := func(m string) string {
		if i := strings.Index(m, "\r\n\r\n"); i >= 0 {
			return m[:i+4]
		}
		return m
	}
	read := func(part func(string) string) oldserver.Reader {
		return func(_ context.Context, indexes []int, begin func() io.Writer, end func(int)) error {
			for _, i := range indexes {
				_, _ = io.WriteString(begin(), part(messages[i]))
				end(i)
			}
			return nil
		}
	}
	in.Side = oldserver.NewSide(sizes, read(header), read(func(m string) string { return m }))
	return in
}

// shown returns the UIDL of each message of an INBOX by its record.
func shown(r *uidl.Record, in oldserver.Inbox) (ids []string) {
	for _, uid := range in.UIDs {
		ids = append(ids, string(r.Current().Append(nil, uid)))
	}
	return ids
}

func carry(t *testing.T, old []proxytest.POP3Message, in oldserver.Inbox) (*uidl.Record, oldserver.Report) {
	t.Helper()
	s := proxytest.StartPOP3Server(t)
	s.SetMaildrop("alice", old)
	d := open(t, s)
	record, report, err := oldserver.Carry(t.Context(), d, in, uidl.Dovecot, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if s.Commands("RETR")+s.Commands("DELE") > 0 {
		t.Error("the old server got RETR or DELE")
	}
	return record, report
}

func TestUIDLsAreCarriedOver(t *testing.T) {
	var old []proxytest.POP3Message
	var messages []string
	for i := range 20 {
		old = append(old, proxytest.POP3Message{UIDL: fmt.Sprintf("old-%d", i), Raw: mail(i)})
		messages = append(messages, mail(19-i)) // copied in another order
	}
	in := inbox(append(messages, mail(100)))
	record, report := carry(t, old, in)
	ids := shown(record, in)
	for i := range 20 {
		if want := fmt.Sprintf("old-%d", 19-i); ids[i] != want {
			t.Errorf("message %d: %q, want %q", i, ids[i], want)
		}
	}
	if report.ByHeader != 20 || report.Left != nil || report.Reordered != 19 || ids[20] != string(uidl.Dovecot.Append(nil, 210, 7)) {
		t.Errorf("%+v, and the new message is %q", report, ids[20])
	}
}

// Criterion: A UIDL of a message that is not found again is given to no other message.
func TestUIDLsWithoutAMessageAreKept(t *testing.T) {
	// The old server's format is the same, and its UIDs are others.
	old := []proxytest.POP3Message{
		{UIDL: string(uidl.Dovecot.Append(nil, 10, 7)), Raw: mail(1)},
		{UIDL: string(uidl.Dovecot.Append(nil, 20, 7)), Raw: mail(2)},
	}
	in := inbox([]string{mail(2), mail(3)})
	record, report := carry(t, old, in)
	ids := shown(record, in)
	if ids[0] != old[1].UIDL || slices.Contains([]string{old[0].UIDL, old[1].UIDL}, ids[1]) {
		t.Errorf("%q; %q are taken", ids, []string{old[0].UIDL, old[1].UIDL})
	}
	if report.Left[oldserver.Missing] != 1 || report.Examples[0].UIDL != old[0].UIDL {
		t.Errorf("%+v", report)
	}
	// The copy of the first message comes late.
	late := uidl.Entry{UID: 30, Header: headerHash(mail(1))}
	entries, _ := record.Recognize([]uidl.Fingerprint{{UID: late.UID, Header: late.Header}})
	if entries[0].UIDL != old[0].UIDL {
		t.Errorf("a late copy has %q, want %q", entries[0].UIDL, old[0].UIDL)
	}
}

func headerHash(m string) uint64 {
	var h uidl.HeaderHash
	_, _ = io.WriteString(&h, m)
	return h.Sum()
}

func TestUIDLsThatAreNotCarriedOver(t *testing.T) {
	same := "Subject: cron\r\n\r\nsame\r\n"
	old := []proxytest.POP3Message{
		{UIDL: "copies", Raw: same}, {UIDL: "copies", Raw: same},
		{UIDL: "shared", Raw: mail(1)}, {UIDL: "shared", Raw: mail(2)},
		{UIDL: "caf\xe9", Raw: mail(3)}, {UIDL: strings.Repeat("x", 71), Raw: mail(4)},
	}
	var messages []string
	for _, m := range old {
		messages = append(messages, m.Raw)
	}
	in := inbox(messages)
	record, report := carry(t, old, in)
	ids := shown(record, in)
	if ids[0] != "copies" || ids[1] != "copies" || report.ByContent != 2 {
		t.Errorf("copies: %q, %+v", ids[:2], report)
	}
	for i, reason := range map[int]oldserver.Reason{2: oldserver.SharedUIDL, 4: oldserver.InvalidUIDL} {
		if ids[i] == old[i].UIDL || ids[i+1] == old[i+1].UIDL || report.Left[reason] != 2 {
			t.Errorf("message %d: %q and %q, %+v", i, ids[i], ids[i+1], report)
		}
	}
	if report.Found() != 2 {
		t.Errorf("%+v", report)
	}
}

// Criterion: an old server that shows the same unique id for all messages is at fault, and nothing is recorded of its answer.
func TestOneUIDLForAllMessagesIsAFault(t *testing.T) {
	old := []proxytest.POP3Message{{UIDL: "same", Raw: mail(1)}, {UIDL: "same", Raw: mail(2)}, {UIDL: "same", Raw: mail(3)}}
	in := inbox([]string{mail(1), mail(2), mail(3)})
	if _, report := carry(t, old, in); report.Copied() == nil || errors.Is(report.Copied(), oldserver.ErrNotCopied) {
		t.Errorf("%v: %+v", report.Copied(), report)
	}
	old[0].UIDL = "own"
	if _, report := carry(t, old, in); report.Copied() != nil || report.Found() != 1 {
		t.Errorf("%v: %+v", report.Copied(), report)
	}
	for i := range old {
		old[i] = proxytest.POP3Message{UIDL: "copies", Raw: mail(1)}
	}
	if _, report := carry(t, old, inbox([]string{mail(1), mail(1), mail(1)})); report.Copied() != nil || report.Found() != 3 {
		t.Errorf("copies: %v: %+v", report.Copied(), report)
	}
}

// long returns a message whose header is too long to have a hash.
func long(i int) string {
	return "Received: by mx.example.org\r\nX-Long: " + strings.Repeat("x", 1<<20) + "\r\n" + mail(i)
}

// Criterion: A message takes no UIDL of another one because both have headers that are too long to be compared.
func TestHeadersThatAreTooLong(t *testing.T) {
	old := []proxytest.POP3Message{{UIDL: "one", Raw: long(1)}}
	in := inbox([]string{long(2)})
	record, report := carry(t, old, in)
	if ids := shown(record, in); ids[0] == "one" || report.Found() != 0 {
		t.Errorf("another message has %q: %+v", ids[0], report)
	}
	in = inbox([]string{long(2), long(1)})
	record, report = carry(t, old, in)
	if ids := shown(record, in); ids[1] != "one" || report.ByContent != 1 {
		t.Errorf("%q: %+v", ids, report)
	}
}

func TestCompareOfHeadersThatAreTooLong(t *testing.T) {
	old, fresh := proxytest.StartPOP3Server(t), proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "a", Raw: long(1)}, {UIDL: "b", Raw: long(2)}})
	fresh.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "a", Raw: long(1)}, {UIDL: "b", Raw: long(3)}})
	a, b := open(t, old), open(t, fresh)
	defer func() { _, _ = a.Close(), b.Close() }()
	got, err := oldserver.Compare(t.Context(), a, b, false)
	if err != nil || got.Same != 1 || got.Findings[oldserver.OtherContent] != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Old servers add fields to the header that IMAP does not show.
func TestFieldsOfTheOldServer(t *testing.T) {
	raw := mail(1)
	old := []proxytest.POP3Message{{UIDL: "one", Raw: "From a@example.org Mon Jan  1 12:00:00 2001\r\nStatus: RO\r\nX-UIDL: one\r\nReturn-Path: <a@example.org>\r\n" + raw}}
	_, report := carry(t, old, inbox([]string{raw}))
	if report.ByHeader != 1 {
		t.Errorf("%+v", report)
	}
}

func TestAnOldServerThatIsLostWithinTOP(t *testing.T) {
	s := proxytest.StartPOP3Server(t)
	s.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "1", Raw: mail(1)}})
	relay := proxytest.StartRelay(t, s.Addr)
	relay.SetFaults(proxytest.Faults{CutRead: 130})
	s.Addr = relay.Addr
	d := open(t, s)
	if record, _, err := oldserver.Carry(t.Context(), d, inbox([]string{mail(1)}), uidl.Dovecot, 0); record != nil || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestCompareFindsWhatDiffers(t *testing.T) {
	old, fresh := proxytest.StartPOP3Server(t), proxytest.StartPOP3Server(t)
	messages := func(ids string) (all []proxytest.POP3Message) {
		for id := range strings.FieldsSeq(ids) { // name=message
			name, number, _ := strings.Cut(id, "=")
			n := 0
			_, _ = fmt.Sscan(number, &n)
			all = append(all, proxytest.POP3Message{UIDL: name, Raw: mail(n)})
		}
		return all
	}
	for name, test := range map[string]struct {
		old, new string
		want     map[oldserver.Finding]int
	}{
		"nothing":                       {"a=1 b=2", "a=1 b=2", nil},
		"empty":                         {"", "", nil},
		"mail came later":               {"a=1", "a=1 b=2", map[oldserver.Finding]int{oldserver.Later: 1}},
		"a message is missing":          {"a=1 b=2", "a=1", map[oldserver.Finding]int{oldserver.NotHere: 1}},
		"another UIDL":                  {"a=1 b=2", "a=1 c=2", map[oldserver.Finding]int{oldserver.OtherUIDL: 1}},
		"a UIDL of another message":     {"a=1 b=2", "a=1 b=3", map[oldserver.Finding]int{oldserver.OtherMessage: 1, oldserver.OtherSize: 1}},
		"UIDLs that have changed place": {"a=1 b=2", "a=2 b=1", map[oldserver.Finding]int{oldserver.OtherMessage: 2, oldserver.OtherSize: 2}},
		"another order":                 {"a=1 b=2", "b=2 a=1", map[oldserver.Finding]int{oldserver.Moved: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			old.SetMaildrop("alice", messages(test.old))
			fresh.SetMaildrop("alice", messages(test.new))
			a, b := open(t, old), open(t, fresh)
			defer func() { _, _ = a.Close(), b.Close() }()
			for _, bodies := range []bool{false, true} {
				got, err := oldserver.Compare(t.Context(), a, b, bodies)
				if err != nil || !slices.Equal(counts(got.Findings), counts(test.want)) {
					t.Errorf("got %v, %v; want %v", got.Findings, err, test.want)
				}
				harmless := test.want[oldserver.OtherMessage]+test.want[oldserver.OtherUIDL]+test.want[oldserver.NotHere] == 0
				if got.Equal() != harmless || (got.Weight() == 0) != harmless {
					t.Errorf("equal: %v, weight %d", got.Equal(), got.Weight())
				}
			}
		})
	}
}

func counts(m map[oldserver.Finding]int) (lines []string) {
	for f, n := range m {
		lines = append(lines, fmt.Sprintf("%s: %d", f, n))
	}
	slices.Sort(lines)
	return lines
}

func TestCompareOfContents(t *testing.T) {
	old, fresh := proxytest.StartPOP3Server(t), proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "a", Raw: "Subject: 1\r\n\r\none\r\n"}})
	fresh.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "a", Raw: "Subject: 1\r\n\r\ntwo\r\n"}})
	a, b := open(t, old), open(t, fresh)
	defer func() { _, _ = a.Close(), b.Close() }()
	for bodies, want := range map[bool]int{false: 0, true: 1} {
		got, err := oldserver.Compare(t.Context(), a, b, bodies)
		if err != nil || got.Findings[oldserver.OtherContent] != want || got.Same != 1-want {
			t.Errorf("bodies %v: %+v, %v", bodies, got, err)
		}
	}
}

// Criterion: 50,000 messages are listed within 10 s at a round-trip time of 20 ms, from a server that takes one command at a time.
func TestALargeOldMaildrop(t *testing.T) {
	s := proxytest.StartPOP3Server(t)
	s.SetRTT(20 * time.Millisecond)
	var old []proxytest.POP3Message
	var messages []string
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 50_000 {
		raw := fmt.Sprintf("Message-ID: <%d@example.org>\r\n\r\n%s", i, strings.Repeat("x", r.IntN(40)))
		old = append(old, proxytest.POP3Message{UIDL: fmt.Sprintf("old-%d", i), Raw: raw, Size: 1000 + int64(i)})
		messages = append(messages, raw)
	}
	s.SetMaildrop("alice", old)
	d := open(t, s)
	if got := s.Commands("TOP"); got != 0 || len(d.Messages) != 50_000 {
		t.Errorf("%d messages with %d TOP", len(d.Messages), got)
	}
	if n := s.Commands("USER") + s.Commands("PASS") + s.Commands("CAPA") + s.Commands("STAT") + s.Commands("LIST") + s.Commands("UIDL"); n != 6 {
		t.Errorf("%d commands for the listing", n)
	}
	in := inbox(messages)
	for i := range in.Side.Sizes {
		in.Side.Sizes[i] = 1000 + int64(i)
	}
	s.SetRTT(0)
	_, report, err := oldserver.Carry(t.Context(), d, in, uidl.Dovecot, 0)
	if err != nil || report.Found() != 50_000 || s.Commands("TOP") > 50_000/50+1 {
		t.Errorf("%+v, %v; TOP: %d", report, err, s.Commands("TOP"))
	}
}
