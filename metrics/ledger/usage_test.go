package ledger

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/state"
)

var morning = time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)

// closed is the end of a POP3 session of alice, by QUIT.
func closed(messages, downloaded, kept, marked int) proxy.Closed {
	return proxy.Closed{
		Client: proxy.Client{Protocol: proxy.POP3}, Account: "alice", End: proxy.EndClientQuit,
		Totals: proxy.Totals{Messages: messages, Downloaded: downloaded, Octets: int64(1000 * downloaded), Kept: kept, Marked: marked, Deleted: marked},
	}
}

// habitOf returns what a ledger says of alice after sessions. each is called after each
// session.
func habitOf(t *testing.T, each func(*Ledger), sessions ...proxy.Closed) Entry {
	t.Helper()
	s := new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return morning })
	for _, c := range sessions {
		l.Observe(c)
		each(l)
	}
	write(t, l)
	got := entries(t, s, "alice")
	if len(got) != 1 || got[0].Sessions == nil {
		t.Fatalf("got %+v", got)
	}
	return got[0]
}

// Criterion: the ledger says what an account's POP3 clients do with its mail - leave it on the server, delete all, delete it later,
// download nothing - and says nothing before a session has shown it: no habit follows from an empty mailbox, from no new mail or from
// a session without QUIT.
func TestHabits(t *testing.T) {
	aborted := closed(5, 3, 3, 0)
	aborted.End = proxy.EndClientAbort
	idle := closed(5, 0, 0, 0)
	left := closed(5, 2, 2, 0)
	for _, c := range []struct {
		name     string
		want     string
		sessions []proxy.Closed
	}{
		{"empty mailbox", HabitUnknown, []proxy.Closed{closed(0, 0, 0, 0), closed(0, 0, 0, 0), closed(0, 0, 0, 0), closed(0, 0, 0, 0)}},
		{"no new mail", HabitUnknown, []proxy.Closed{idle, idle, idle, idle, idle}},
		{"no QUIT", HabitUnknown, []proxy.Closed{aborted, aborted, aborted, aborted}},
		{"leaves", HabitLeaves, []proxy.Closed{left, idle, idle, idle}},
		{"leaves, and sees new mail late", HabitLeaves, []proxy.Closed{left, closed(6, 0, 0, 0), closed(7, 0, 0, 0), closed(8, 0, 0, 0), closed(9, 0, 0, 0)}},
		{"deletes", HabitDeletes, []proxy.Closed{closed(3, 3, 0, 3), closed(0, 0, 0, 0), closed(1, 1, 0, 1)}},
		{"deletes what a session before has downloaded and not deleted", HabitDeletes, []proxy.Closed{aborted, closed(5, 2, 0, 5)}},
		{"deletes later", HabitLater, []proxy.Closed{left, idle, closed(5, 0, 0, 2)}},
		{"deletes old mail and leaves new mail", HabitLater, []proxy.Closed{closed(9, 2, 2, 1)}},
		{"two clients", HabitMixed, []proxy.Closed{left, closed(5, 5, 0, 5)}},
		{"deletes what it never had", HabitUnknown, []proxy.Closed{closed(5, 0, 0, 2)}},
		{"downloads nothing", HabitNothing, []proxy.Closed{idle, closed(6, 0, 0, 0), closed(7, 0, 0, 0), closed(8, 0, 0, 0)}},
		{"has skipped two", HabitUnknown, []proxy.Closed{idle, closed(6, 0, 0, 0), closed(7, 0, 0, 0), closed(7, 0, 0, 0)}},
		{"a setting changed long ago", HabitDeletes, append([]proxy.Closed{left}, repeat(closed(1, 1, 0, 1), 16)...)},
	} {
		at := func(when string, each func(*Ledger)) {
			if got := habitOf(t, each, c.sessions...).Sessions.Habit; got != c.want {
				t.Errorf("%s, written %s: %s, want %s", c.name, when, got, c.want)
			}
		}
		at("at the end", func(*Ledger) {})
		at("after each session", func(l *Ledger) { write(t, l) })
	}
}

func repeat(c proxy.Closed, n int) (all []proxy.Closed) {
	for range n {
		all = append(all, c)
	}
	return all
}

func TestTheEndsOfSessionsAreSummed(t *testing.T) {
	got := habitOf(t, func(*Ledger) {}, closed(5, 2, 2, 0), closed(7, 2, 0, 3))
	left := 4
	want := &Sessions{Since: "2026-11-20", Ended: 2, Messages: 4, Octets: 4000, Deleted: 3, Habit: HabitLater, Left: &left}
	if !reflect.DeepEqual(got.Sessions, want) || got.Logins != 0 || got.Seen() != "" || got.TLS != "" {
		t.Errorf("got %+v, %+v", got, got.Sessions)
	}
}

// Criterion: from how many networks an account comes is estimated without storing one.
func TestNetworksAreEstimated(t *testing.T) {
	for _, n := range []int{1, 2, 5, 20, 50} {
		var u Usage
		for i := range n {
			for host := range 3 {
				u.Login(morning, "alice", netip.AddrFrom4([4]byte{192, 0, byte(i), byte(host)}), tls.VersionTLS13)
			}
		}
		if got := u.Entry("alice", proxy.POP3).Networks; got < n-1-n/5 || got > n+1+n/5 || n <= 2 && got != n {
			t.Errorf("%d networks are estimated as %d", n, got)
		}
	}
	var six Usage
	for i := range 4 {
		six.Login(morning, "alice", netip.MustParseAddr(fmt.Sprintf("2001:db8:7::%d", i)), tls.VersionTLS13)
		six.Login(morning, "alice", netip.MustParseAddr(fmt.Sprintf("::ffff:192.0.2.%d", i)), tls.VersionTLS13)
	}
	if got := six.Entry("alice", proxy.POP3).Networks; got != 2 {
		t.Errorf("a /48 and a /24 are %d networks", got)
	}
}

func TestNetworksOfLongAgoAreForgotten(t *testing.T) {
	var u Usage
	at := func(days, network int) {
		u.Login(morning.AddDate(0, 0, days), "alice", netip.AddrFrom4([4]byte{10, 0, byte(network), 1}), tls.VersionTLS13)
	}
	for i := range 5 {
		at(i, i)
	}
	at(40, 9)
	if got := u.networks(); got < 5 || got > 7 {
		t.Errorf("after 40 days: %d", got)
	}
	at(50, 8)
	at(71, 7)
	if got := u.networks(); got < 2 || got > 4 {
		t.Errorf("of the period before: %d", got)
	}
	at(140, 9)
	if got := u.networks(); got != 1 {
		t.Errorf("after a long pause: %d", got)
	}
}

func TestDaysWithALoginAreCounted(t *testing.T) {
	var u Usage
	for _, d := range []int{0, 1, 1, 1, 5, 29} {
		u.Login(morning.AddDate(0, 0, d), "alice", netip.Addr{}, 0)
	}
	if got := u.Entry("alice", proxy.POP3).Days; got != 4 {
		t.Errorf("days: %d", got)
	}
	u.Login(morning.AddDate(0, 0, 31), "alice", netip.Addr{}, 0)
	if e := u.Entry("alice", proxy.POP3); e.Days != 3 || e.First != "2026-11-20" || e.Last != "2026-12-21" || e.Logins != 7 {
		t.Errorf("the first days are over: %+v", e)
	}
	u.Login(morning.AddDate(1, 0, 0), "alice", netip.Addr{}, 0)
	if got := u.Entry("alice", proxy.POP3).Days; got != 1 {
		t.Errorf("after a year: %d", got)
	}
}

// Criterion: a login that was refused because it came without TLS is recorded of accounts that exist, and of no other name that a client sends.
func TestRefusedLoginsWithoutTLSAreRecorded(t *testing.T) {
	s := new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return morning })
	l.KnownElsewhere = func(account string) bool { return account == "carol" }
	l.Observe(login("alice", proxy.IMAP, tls.VersionTLS13))
	for _, account := range []string{"alice", "alice", "carol", "hunter2", ""} {
		l.Observe(proxy.Attempt{Client: proxy.Client{Protocol: proxy.POP3}, Account: account, Err: proxy.NewRefusal(proxy.Plaintext, nil)})
	}
	l.Observe(proxy.Attempt{Client: proxy.Client{Protocol: proxy.POP3}, Account: "alice", Err: proxy.NewRefusal(proxy.Wrong, nil)})
	write(t, l)
	want := []Entry{
		{Account: "alice", Protocol: proxy.IMAP, First: "2026-11-20", Last: "2026-11-20", Logins: 1, TLS: "1.3", Days: 1},
		{Account: "alice", Protocol: proxy.POP3, Plaintext: "2026-11-20", PlaintextTries: 2},
		{Account: "carol", Protocol: proxy.POP3, Plaintext: "2026-11-20", PlaintextTries: 1},
	}
	if got := entries(t, s, ""); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := l.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := l.Counts(); c.Plaintext[proxy.POP3] != 2 || c.Protocols[proxy.POP3] != 0 || len(c.Habits) != 0 {
		t.Errorf("counted %+v", c)
	}
	// The entry is no login, and ends as one.
	gone, err := Expire(t.Context(), s, morning)
	if n := len(entries(t, s, "")); err != nil || len(gone) != 0 || n != 3 {
		t.Errorf("expired on the same day: %v, %v, left: %d", gone, err, n)
	}
	gone, err = Expire(t.Context(), s, morning.AddDate(0, 0, 1))
	if err != nil || fmt.Sprint(gone) != "[alice carol]" {
		t.Errorf("expired: %v, %v", gone, err)
	}
}

// Criterion: entries of an earlier version of the ledger are read, and go on.
func TestEntriesOfAnEarlierVersionAreRead(t *testing.T) {
	s := new(state.Memory)
	const stored = `{"account":"alice","protocol":"pop3","first":"2025-01-02","last":"2026-11-18","logins":41,"tls":"1.2"}`
	err := s.UpdateAll(t.Context(), []string{"alice\x00pop3"}, func(string, []byte) ([]byte, error) { return []byte(stored), nil })
	if err != nil {
		t.Fatal(err)
	}
	want := Entry{Account: "alice", Protocol: proxy.POP3, First: "2025-01-02", Last: "2026-11-18", Logins: 41, TLS: "1.2"}
	if got := entries(t, s, ""); len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return morning })
	l.Observe(login("alice", proxy.POP3, tls.VersionTLS13))
	write(t, l)
	want.Last, want.Logins, want.TLS, want.Days = "2026-11-20", 42, "1.3", 1
	if got := entries(t, s, ""); len(got) != 1 || got[0] != want {
		t.Errorf("after a login: %+v, want %+v", got, want)
	}
}

func TestAnEntryThatCannotBeReadIsBegunAnew(t *testing.T) {
	var u Usage
	u.Login(morning, "alice", netip.Addr{}, tls.VersionTLS13)
	good := u.encode()
	for _, stored := range []string{"", "{", "{}", "\x01", "\x02" + string(good[1:]), string(good[:len(good)-1]), string(good) + "x"} {
		if err := new(Usage).decode([]byte(stored)); err == nil {
			t.Errorf("%q is read", stored)
		}
		again, err := update([]byte(stored), pending{Usage: u})
		if err != nil || string(again) != string(good) {
			t.Errorf("%q becomes %q, %v", stored, again, err)
		}
	}
}

func TestAUsageIsReadAsItWasWritten(t *testing.T) {
	for _, want := range []Usage{
		{},
		{Plaintext: 20000, PlaintextTries: 3},
		{
			First: 20000, Last: 20400, Logins: 1<<32 - 1, TLS: tls.VersionTLS10, Days: 1<<32 - 1, Networks: [2]uint64{1<<64 - 1, 1 << 63}, NetworksSince: 20399,
			Plaintext: 20001, PlaintextTries: 1<<32 - 1, SessionsSince: 20002, Sessions: 1<<32 - 1, Messages: 1<<32 - 1, Octets: 1<<64 - 1, Deleted: 1<<32 - 1,
			Left: 1<<32 - 1, Skipped: 255, Recent: 1<<64 - 1,
		},
		{First: 1, Last: 1, TLS: tls.VersionTLS13},
		{First: 1, Last: 1, TLS: VersionUnknown},
		{Migration: Migration{Mode: proxy.ModeBridge, Since: noon}},
		{First: 20000, Last: 20400, Migration: full},
	} {
		var got Usage
		if err := got.decode(want.encode()); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(`{"account":"alice","protocol":"pop3","first":"2025-01-02","last":"2026-11-18","logins":41,"tls":"1.2"}`))
	full := Usage{First: 20000, Last: 20400, Logins: 7, TLS: tls.VersionTLS12, Days: 5, Networks: [2]uint64{8, 1 << 63}, NetworksSince: 20399, SessionsSince: 20390, Sessions: 3, Recent: 0x123}
	f.Add(full.encode())
	migrating := full
	migrating.Migration = Migration{
		Backend: "main", Mode: proxy.ModeShadow, Since: noon, Shadow: Compared{At: noon, Result: proxy.ShadowDiffers, Messages: 7, Missing: 2},
		Failed: Failure{noon, StepLearn, "connection refused"}, KeptOld: 3,
	}
	f.Add(migrating.encode())
	f.Fuzz(func(t *testing.T, stored []byte) {
		var u, again Usage
		if u.decode(stored) != nil {
			return
		}
		if err := again.decode(u.encode()); err != nil || again != u {
			t.Errorf("%q is %+v, then %+v, %v", stored, u, again, err)
		}
		if e := u.Entry("alice", proxy.POP3); e.Networks < 0 || e.Days > countedDays || e.Sessions != nil && !slices.Contains(Habits(), e.Sessions.Habit) {
			t.Errorf("%q is %+v", stored, e)
		}
		if _, err := update(stored, pending{Usage: full}); err != nil {
			t.Error(err)
		}
	})
}

func TestCountersDoNotOverflow(t *testing.T) {
	u := Usage{First: 1, Last: 1, Logins: 1<<32 - 1, SessionsSince: 1, Sessions: 1<<32 - 1, Messages: 1<<32 - 1, Left: 1}
	u.Login(morning, "alice", netip.Addr{}, 0)
	for range 300 {
		u.End(morning, Session{proxy.Totals{Messages: 1, Downloaded: 1, Kept: 1}, true})
		u.Left = 1
		u.End(morning, Session{proxy.Totals{Messages: 1}, true})
	}
	if u.Logins != 1<<32-1 || u.Messages != 1<<32-1 || u.Sessions != 1<<32-1 {
		t.Errorf("got %+v", u)
	}
}

// BenchmarkObserve is what a session costs that logs in and ends.
func BenchmarkObserve(b *testing.B) {
	l := New(new(state.Memory), slog.New(slog.DiscardHandler), nil)
	opened, end := login("alice", proxy.POP3, tls.VersionTLS13), closed(5, 2, 2, 0)
	opened.Client.Addr = netip.MustParseAddrPort("192.0.2.7:4711")
	b.ReportAllocs()
	for b.Loop() {
		l.Observe(opened)
		l.Observe(end)
	}
}

// Criterion: the ledger takes at most 200 octets of record.db for each account, of which a million are tried.
func TestAnAccountTakesLittleSpace(t *testing.T) {
	proof, accounts, most := os.Getenv("POSTERN_PROOF") != "", 2000, int64(130) // without the space that a B+ tree leaves free
	if proof {
		accounts, most = 1_000_000, 200
	}
	path := filepath.Join(t.TempDir(), "record.db")
	store, err := state.Open(path, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bucket := store.Bucket("ledger")
	now := morning
	l := New(bucket, slog.New(slog.DiscardHandler), func() time.Time { return now })
	random := rand.New(rand.NewPCG(1, 2))
	for range 2 { // days
		for i, n := range random.Perm(accounts) {
			account := fmt.Sprintf("firstname.lastname%06d@customer%03d.example", n, n%500)
			opened, end := login(account, proxy.POP3, tls.VersionTLS12), closed(40, 2, 2, 0)
			opened.Client.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1}), 4711)
			end.Account = account
			l.Observe(opened)
			l.Observe(end)
			if i%5000 == 4999 { // as in a minute
				write(t, l)
			}
		}
		write(t, l)
		now = now.AddDate(0, 0, 1)
	}
	begun, n := time.Now(), 0
	if err := Entries(t.Context(), bucket, "", func(Entry) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries are read in %v", n, time.Since(begun))
	size := int64(0)
	err = bucket.Scan(t.Context(), "", func(key string, value []byte) error {
		size += int64(16 + len(key) + len(value))
		return nil
	})
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
	if proof {
		file, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d octets without free space", size/int64(n))
		size = file.Size()
	}
	t.Logf("%d octets for each account", size/int64(n))
	if n != accounts || size > most*int64(n) {
		t.Errorf("%d accounts in %d octets, want at most %d for each", n, size, most)
	}
}
