package outcomes

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

var seed = maphash.MakeSeed()

func hash(name string) uint64 { return maphash.String(seed, name) }

// newMemory returns a Memory for which these accounts are known, and all networks.
func newMemory(known ...string) *Memory {
	m := New(hash)
	m.Known = func(account string) bool { return slices.Contains(known, account) }
	m.KnownNetwork = func(netip.Addr) bool { return true }
	return m
}

func client(addr string) proxy.Client {
	return proxy.Client{ID: rand.Text()[:12], Protocol: proxy.IMAP, Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 4711)}
}

func attempt(account, addr string, err error) proxy.Attempt {
	return proxy.Attempt{Client: client(addr), User: account, Account: account, Err: err}
}

var wrong = proxy.NewRefusal(proxy.Wrong, nil)

// words returns outcomes in words.
func words(all []Outcome) (lines []string) {
	for _, o := range all {
		line := fmt.Sprint(o.Kind)
		if o.Count > 1 {
			line += fmt.Sprintf(" x%d", o.Count)
		}
		if o.Detail != "" {
			line += ": " + o.Detail
		}
		lines = append(lines, line)
	}
	return lines
}

func wantWords(t *testing.T, got []Outcome, want ...string) {
	t.Helper()
	if w := words(got); !slices.Equal(w, want) {
		t.Errorf("outcomes:\n\t%s\nwant\n\t%s", strings.Join(w, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// Criterion: Postern remembers how the last logins and sessions of an account ended: what was refused and why, what the guard
// limited, and what a session ended with, with the session id of each.
func TestEachOutcomeOfAnAccountIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory("alice")
		limited := attempt("alice", "192.0.2.1", proxy.NewRefusal(proxy.Throttled, &proxy.Decision{Bucket: "pair"}))
		limited.Decision = proxy.Decision{Tier: "stranger_used", Bucket: "pair", RetryAfter: time.Hour}
		again := attempt("alice", "192.0.2.1", wrong)
		again.Decision = proxy.Decision{Tier: "known_good", Repeat: true}
		away := attempt("alice", "192.0.2.1", proxy.NewRefusal(proxy.Unavailable, errors.New("dial tcp 10.0.0.1:39251->10.0.0.5:993: i/o timeout for alice from 192.0.2.1")))
		damaged := attempt("alice", "192.0.2.1", &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: errors.New("open maildrop: state is damaged")})
		pop3 := client("192.0.2.1")
		pop3.Protocol = proxy.POP3
		right := attempt("alice", "192.0.2.1", nil)
		right.Backend = "main"
		for _, e := range []proxy.Event{
			attempt("alice", "192.0.2.1", wrong), again, limited, away, damaged,
			attempt("alice", "192.0.2.1", proxy.NewRefusal(proxy.Plaintext, nil)),
			attempt("alice", "192.0.2.1", proxy.NewRefusal(proxy.ProtocolOff, nil)),
			attempt("alice", "192.0.2.1", errors.New("client closed the connection")), right,
			proxy.Closed{Client: client("192.0.2.1"), Account: "alice", End: proxy.EndError, Err: errors.New("read: connection reset")},
			proxy.Closed{Client: client("192.0.2.1"), Account: "alice", End: proxy.EndClientQuit},
			proxy.Closed{Client: client("192.0.2.1"), Account: "alice", End: proxy.EndBackendClosed},
			proxy.Closed{Client: pop3, Account: "alice", End: proxy.EndBackendClosed},
			proxy.Closed{Client: client("192.0.2.1"), Account: "alice", End: proxy.EndKicked},
			proxy.Closed{Client: client("192.0.2.1"), End: proxy.EndError},
			proxy.MaildropNoticed{Client: pop3, Account: "alice", Kind: proxy.NoticeChanged},
			proxy.MaildropNoticed{Client: pop3, Account: "alice", Kind: proxy.NoticeCache},
			proxy.POP3Command{},
		} {
			m.Observe(e)
			time.Sleep(time.Second)
		}
		got := m.Of("alice")
		wantWords(t, got, "wrong", "wrong_again", "throttled: pair", "unavailable: dial tcp 10.0.0.5:993: i/o timeout for ACCOUNT from CLIENT",
			"not_opened: open maildrop: state is damaged", "plaintext", "protocol_off", "abandoned", "login: main", "end_error: read: connection reset", "end_backend_closed", "end_kicked", "uidls_changed")
		if o := got[10]; o.Session != pop3.ID || o.Protocol != proxy.POP3 || o.Network != netip.MustParsePrefix("192.0.2.1/32") || !o.Own {
			t.Errorf("the session's end: %+v", o)
		}
		if o := got[2]; o.Own {
			t.Errorf("a stranger is said to be the owner: %+v", o)
		}
		wantWords(t, m.Of("bob"))
		m.Forget("alice")
		wantWords(t, m.Of("alice"))
	})
}

func TestEachReasonAndEndHasAKind(t *testing.T) {
	names := make(map[string]bool)
	for _, k := range Kinds() {
		var back Kind
		if err := back.UnmarshalText([]byte(k.String())); err != nil || back != k {
			t.Errorf("%v: %v, %v", k, back, err)
		}
		if names[k.String()] || k.String() == "unknown" {
			t.Errorf("two kinds are %v", k)
		}
		names[k.String()] = true
	}
	if k := new(Kind); k.UnmarshalText([]byte("nosuch")) == nil {
		t.Error("nosuch is a kind")
	}
	if last := slices.Max(proxy.Reasons()); Kind(last) >= Login {
		t.Errorf("reason %v has the number of another kind", last)
	}
}

// Criterion: a client that asks every minute does not push out why it was refused at 9:14: the same outcome within an hour of
// the last one is counted.
func TestTheSameOutcomeIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		begun := time.Now()
		m.Observe(attempt("alice", "192.0.2.1", nil))
		time.Sleep(time.Minute)
		m.Observe(attempt("alice", "192.0.2.1", wrong))
		last := attempt("alice", "192.0.2.1", nil)
		for range 24*60 - 2 {
			time.Sleep(time.Minute)
			m.Observe(last)
		}
		got := m.Of("alice")
		wantWords(t, got, "wrong", "login x1439")
		if o := got[1]; !o.First.Equal(begun) || !o.Last.Equal(time.Now()) || o.Session != last.Client.ID {
			t.Errorf("from %s to %s, session %s", o.First, o.Last, o.Session)
		}
		time.Sleep(MergeFor + time.Minute)
		m.Observe(last)
		wantWords(t, m.Of("alice"), "wrong", "login x1439", "login")
		for range math.MaxUint16 + 10 {
			m.Observe(last)
		}
		wantWords(t, m.Of("alice"), "wrong", "login x1439", "login x65535")
	})
}

func address(i int) string {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()
}

// Criterion: whoever tries many names, or one account from many networks, pushes out neither other accounts' outcomes nor the
// owner's own ones.
func TestAnAttackerPushesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory("alice", "bob")
		m.KnownNetwork = func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.1") }
		own := attempt("alice", "192.0.2.1", wrong)
		own.Decision.Tier = "known_good"
		m.Observe(own)
		m.Observe(attempt("bob", "192.0.2.1", proxy.NewRefusal(proxy.Suspended, nil)))
		m.Observe(proxy.Handshake{Client: client("192.0.2.1"), Result: proxy.HandshakeTimeout})
		time.Sleep(time.Second)
		for i := range 30_000 {
			m.Observe(attempt("alice", address(i), wrong))
			m.Observe(attempt(fmt.Sprint("name", i), address(i), wrong))
			m.Observe(proxy.Handshake{Client: client(address(i)), Result: proxy.HandshakeTimeout})
		}
		if all := m.Of("alice"); len(all) != perAccount || all[0].Network != netip.MustParsePrefix("192.0.2.1/32") {
			t.Errorf("of alice %d outcomes, the first one %+v", len(all), all[0])
		}
		wantWords(t, m.Of("bob"), "suspended")
		wantWords(t, m.FromNetworks(func(netip.Prefix) bool { return true }), "tls_timeout")
		if n := len(m.names.index); n != names {
			t.Errorf("%d names are remembered, want %d", n, names)
		}
		// The owner's own ones leave room for the others, too.
		for i := range 100 {
			e := attempt("alice", address(i), wrong)
			e.Decision.Tier = "known_good"
			m.Observe(e)
		}
		strangers := 0
		for _, o := range m.Of("alice") {
			if !o.Own {
				strangers++
			}
		}
		if strangers != perAccount/2-1 {
			t.Errorf("%d outcomes of others are left", strangers)
		}
	})
}

// Criterion: whoever makes handshakes or logins fail in thousands of different ways pushes out no detail of another account or network.
func TestAnAttackerPushesNoDetailOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory("alice")
		m.Observe(attempt("alice", "192.0.2.1", proxy.NewRefusal(proxy.Unavailable, errors.New("connection refused"))))
		m.Observe(proxy.CertificateRejected{Client: client("192.0.2.1"), Alert: "unknown_ca"})
		for i := range 5000 {
			err := fmt.Errorf("tls: oversized record received with length %d", i)
			m.Observe(proxy.Handshake{Client: client("192.0.2.2"), Result: proxy.HandshakeError, Reason: proxy.NoOther, Err: err})
			m.Observe(attempt(fmt.Sprint("name", i), "192.0.2.2", proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("error %d", i))))
		}
		home := func(n netip.Prefix) bool { return n == netip.MustParsePrefix("192.0.2.1/32") }
		for _, m := range []*Memory{m, exported(t, m)} {
			wantWords(t, m.Of("alice"), "unavailable: connection refused")
			wantWords(t, m.FromNetworks(home), "certificate_rejected: unknown_ca")
			if last := m.Of("name4999"); len(last) != 1 || last[0].Detail != "error 4999" {
				t.Errorf("%+v", last)
			}
		}
	})
}

// exported returns a Memory that has imported what m exports.
func exported(t *testing.T, m *Memory) *Memory {
	t.Helper()
	other := newMemory()
	m.Export(func(batch []byte) {
		if err := other.Import(batch); err != nil {
			t.Error(err)
		}
	})
	return other
}

func TestANameThatBecomesAnAccountTakesItsOutcomesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.Observe(attempt("alice", "192.0.2.1", wrong))
		time.Sleep(time.Second)
		m.Observe(attempt("alice", "192.0.2.1", nil))
		wantWords(t, m.Of("alice"), "wrong", "login")
		if m.names.get(hash("alice")) != nil || len(m.accounts.get(hash("alice"))) != 2 {
			t.Error("they are not in the table of accounts")
		}
		m.Observe(proxy.Attempt{Client: client("192.0.2.1"), User: "odd\x00name", Err: proxy.NewRefusal(proxy.Malformed, nil)})
		wantWords(t, m.Of("odd\x00name"), "malformed")
	})
}

// Criterion: failures before login have no account: of networks that accounts use they are remembered, with what failed.
func TestFailuresOfKnownNetworksAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.KnownNetwork = func(a netip.Addr) bool { return a != netip.MustParseAddr("192.0.2.9") }
		home := client("2001:db8::1")
		for _, e := range []proxy.Event{
			proxy.Handshake{Client: home, Result: proxy.HandshakeOK},
			proxy.Handshake{Client: home, Result: proxy.HandshakeSilent},
			proxy.Handshake{Client: home, Result: proxy.HandshakeBadProtocol},
			proxy.Handshake{Client: home, Result: proxy.HandshakeEarly},
			proxy.Handshake{Client: home, Result: proxy.HandshakeTimeout},
			proxy.Handshake{Client: home, Result: proxy.HandshakeClientAbort},
			proxy.Handshake{Client: home, Result: proxy.HandshakeClientAbort, Reason: proxy.LeftAfterCertificate},
			proxy.Handshake{Client: home, Result: proxy.HandshakeClientAbort, Reason: proxy.RejectedCertificate},
			proxy.CertificateRejected{Client: home, Alert: "unknown_ca"},
			proxy.Handshake{Client: home, Result: proxy.HandshakeError, Reason: proxy.NoVersion, Needs: "legacy"},
			proxy.Handshake{Client: home, Result: proxy.HandshakeError, Reason: proxy.NoCipher},
			proxy.Handshake{Client: home, Result: proxy.HandshakeError, Reason: proxy.NoProtocol},
			proxy.Handshake{Client: home, Result: proxy.HandshakeError, Reason: proxy.NoCertificate},
			proxy.Handshake{Client: home, Result: proxy.HandshakeError, Reason: proxy.NoOther, Err: errors.New("odd")},
			proxy.Rejected{Client: home, Err: proxy.NewRefusal(proxy.TooMany, nil)},
			proxy.Rejected{Client: home, Err: proxy.ErrProxyHeader},
			proxy.Handshake{Client: client("192.0.2.9"), Result: proxy.HandshakeTimeout},
		} {
			m.Observe(e)
			time.Sleep(time.Second)
		}
		all := m.FromNetworks(func(n netip.Prefix) bool { return n == netip.MustParsePrefix("2001:db8::/64") })
		wantWords(t, all, "closed_after_certificate", "certificate_rejected: unknown_ca", "tls_version: legacy", "tls_cipher: none", "tls_protocol", "tls_certificate", "tls_failed: odd", "rejected")
		if len(all) != perNetwork || all[0].Session != home.ID || all[0].Protocol != proxy.IMAP {
			t.Errorf("got %+v", all[0])
		}
		wantWords(t, m.FromNetworks(func(n netip.Prefix) bool { return n == netip.MustParsePrefix("192.0.2.9/32") }))
	})
}

// Criterion: the process after an upgrade remembers what the old one did, and learns how the sessions end that are left to the
// old one.
func TestAnotherProcessImportsAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newMemory("alice")
		begun := time.Now()
		for i := range 3000 {
			old.Observe(attempt(fmt.Sprint("user", i), address(i), nil))
			old.Observe(proxy.Handshake{Client: client(address(i)), Result: proxy.HandshakeTimeout})
		}
		e := attempt("alice", "2001:db8::1", proxy.NewRefusal(proxy.Unavailable, errors.New(strings.Repeat("x", 500))))
		old.Observe(e)
		old.Observe(attempt("nobody", "192.0.2.1", wrong))
		time.Sleep(time.Second)
		next := newMemory("alice")
		batches := 0
		old.Export(func(b []byte) {
			batches++
			if err := next.Import(b); err != nil || len(b) > batch+perAccount*(exportedSize+maxDetail)+9 {
				t.Errorf("%v: %d octets", err, len(b))
			}
		})
		if batches < 3 || !next.Since().Equal(begun) {
			t.Errorf("%d batches, since %s", batches, next.Since())
		}
		for _, name := range []string{"alice", "nobody", "user0", "user2999"} {
			if a, b := old.Of(name), next.Of(name); len(a) != 1 || !slices.Equal(a, b) {
				t.Errorf("%s: %+v, want %+v", name, b, a)
			}
		}
		if a, b := old.FromNetworks(anyNetwork), next.FromNetworks(anyNetwork); len(a) != 3000 || len(b) != len(a) {
			t.Errorf("%d failures of networks, want %d", len(b), len(a))
		}
		old.Observe(proxy.Closed{Client: client("192.0.2.1"), Account: "user7", End: proxy.EndError})
		wantWords(t, next.Of("user7"), "login", "end_error")
		if next.names.get(hash("nobody")) == nil || next.accounts.get(hash("user7")) == nil {
			t.Error("they are in other tables than before")
		}
	})
}

func anyNetwork(netip.Prefix) bool { return true }

func TestImportTakesNoOddOctets(t *testing.T) {
	m, whole := newMemory(), newMemory()
	whole.Observe(attempt("alice", "192.0.2.1", nil))
	var b []byte
	whole.Export(func(octets []byte) { b = octets })
	for i := range b {
		if err := m.Import(b[:i]); err == nil && i != 9 {
			t.Errorf("%d octets of %d are no error", i, len(b))
		}
	}
	if err := m.Import(append([]byte{version + 1}, b[1:]...)); !errors.Is(err, ErrVersion) {
		t.Errorf("another version: %v", err)
	}
}

func FuzzImport(f *testing.F) {
	m := newMemory()
	m.Observe(attempt("alice", "192.0.2.1", nil))
	m.Export(func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMemory()
		_ = m.Import(b)
		for _, o := range append(m.Of("alice"), m.FromNetworks(anyNetwork)...) {
			if len(o.Session) > 12 || len(o.Detail) > 255 {
				t.Errorf("got %+v", o)
			}
		}
		var again []byte
		m.Export(func(b []byte) { again = append(again, b...) })
	})
}

func TestASessionIdIsKept(t *testing.T) {
	for _, id := range []string{"", "A", "7", "AAAAAAAAAAAA", "777777777777", "4RSQJIF6A2A5"} {
		if got := sessionOf(sessionNumber(id)); got != id {
			t.Errorf("%q is %q", id, got)
		}
	}
	for _, id := range []string{"S1", "a", "AAAAAAAAAAAAA", "A-"} {
		if got := sessionOf(sessionNumber(id)); got != "" {
			t.Errorf("%q is %q", id, got)
		}
	}
}

func TestDetailsAreBounded(t *testing.T) {
	var d details
	var numbers []uint32
	for i := range 5000 {
		numbers = append(numbers, d.number(fmt.Sprint(i)))
	}
	if len(d.numbers) != len(d.ring) {
		t.Errorf("%d are remembered", len(d.numbers))
	}
	for i, n := range numbers {
		want := fmt.Sprint(i)
		if i < 5000-len(d.ring) {
			want = ""
		}
		if got := d.get(n); got != want {
			t.Fatalf("%d is %q, want %q", i, got, want)
		}
	}
	if d.number("4999") != numbers[4999] || d.get(0) != "" {
		t.Error("the same detail has another number")
	}
}

// Criterion: what is remembered of 100,000 accounts with 32 outcomes each, 10,000 other names and 20,000 networks uses at most
// 64 MiB; if there is more, each account keeps its last ones.
func TestAllOfItIsBounded(t *testing.T) {
	accounts, names, networks := accounts/scale, names/scale, networks/scale
	used := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := used()
	m := newMemory()
	m.accounts = newTable(accounts, perAccount, accountMemory/scale)
	m.names = newTable(names, perName, names*perName)
	m.networks = newTable(networks, perNetwork, networks*perNetwork/2)
	m.Known = func(account string) bool { return account[0] == 'u' }
	kinds := Kinds()
	now := uint32(time.Now().Unix())
	for i := range uint32(perAccount) {
		for j := range accounts {
			m.accounts.add(hash(fmt.Sprint("u", j)), record{kind: kinds[i%8], flags: own, network: uint64(i), first: now + i, last: now + i, count: 1})
		}
	}
	for i := range 2 * names {
		for j := range 2 * perName {
			m.Observe(attempt(fmt.Sprint("x", i), address(j), proxy.NewRefusal(proxy.Wrong, errors.New(fmt.Sprint(i, strings.Repeat("y", 100))))))
		}
	}
	for i := range 2 * networks {
		for j := range uint32(2 * perNetwork) {
			m.networks.add(uint64(i+1), record{kind: kinds[j], network: uint64(i + 1), first: now, last: now})
		}
	}
	after := used()
	t.Logf("%.1f MiB: %d accounts with %d outcomes, room for %d", float64(after-before)/(1<<20), len(m.accounts.index), m.count(m.accounts), m.accounts.room)
	if after-before > 64<<20/scale && scale == 1 {
		t.Errorf("%d MiB", (after-before)>>20)
	}
	least, with32 := perAccount, 0
	for i := range m.accounts.entries {
		e := &m.accounts.entries[i]
		least = min(least, len(e.records))
		if len(e.records) == perAccount {
			with32++
		}
		if e.last != now+perAccount-1 {
			t.Fatalf("entry %d has lost its last outcome", i)
		}
	}
	t.Logf("%d accounts have all 32, each has %d or more", with32, least)
	if len(m.accounts.index) != accounts || m.accounts.room > m.accounts.memory || least < 2*step {
		t.Errorf("%d accounts, room for %d of %d, the least has %d", len(m.accounts.index), m.accounts.room, m.accounts.memory, least)
	}
	for _, table := range []*table{m.accounts, m.names, m.networks} {
		room := 0
		for i := range table.entries {
			room += cap(table.entries[i].records)
		}
		if room != table.room || len(table.index) > table.limit {
			t.Errorf("%d keys with room for %d, counted %d", len(table.index), room, table.room)
		}
	}
	runtime.KeepAlive(m)
}

func (m *Memory) count(t *table) (n int) {
	for i := range t.entries {
		n += len(t.entries[i].records)
	}
	return n
}

func TestATableRemovesAndReuses(t *testing.T) {
	one := newTable(3, 8, 3*8)
	for key := range uint64(10) {
		one.add(key, record{last: uint32(key), first: uint32(key)})
		if len(one.index) > 3 || len(one.entries) > 3 || one.room > 3*step {
			t.Fatalf("%d keys, room for %d", len(one.index), one.room)
		}
	}
	keys := slices.SortedFunc(func(yield func(uint64) bool) {
		for k := range one.index {
			yield(k)
		}
	}, cmp.Compare)
	if len(keys) != 3 || keys[2] != 9 {
		t.Errorf("left are %v", keys)
	}
	for _, k := range append(keys, 77) {
		one.remove(k)
	}
	if len(one.index) != 0 || one.room != 0 || len(one.free) != 3 {
		t.Errorf("after it: %d keys, room for %d, %d free", len(one.index), one.room, len(one.free))
	}
}

func BenchmarkObserve(b *testing.B) {
	e := attempt("alice@example.org", "192.0.2.1", nil)
	e.Backend, e.Decision.Tier = "main", "known_good"
	refused := e
	refused.Err = proxy.NewRefusal(proxy.Unavailable, errors.New("dial tcp 10.0.0.1:39251->10.0.0.5:993: i/o timeout"))
	for name, e := range map[string]proxy.Event{
		"login": e, "refused": refused, "other event": proxy.POP3Command{Command: "STAT", OK: true},
		"handshake failed": proxy.Handshake{Client: e.Client, Result: proxy.HandshakeTimeout},
	} {
		b.Run(name, func(b *testing.B) {
			m := newMemory("alice@example.org")
			b.ReportAllocs()
			for b.Loop() {
				m.Observe(e)
			}
		})
	}
	b.Run("full", func(b *testing.B) {
		m := newMemory()
		var all []proxy.Event
		for i := range 200_000 {
			e := attempt(fmt.Sprint("user", i), address(i), nil)
			all = append(all, e)
			m.Observe(e)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			m.Observe(all[i*7919%len(all)])
		}
	})
}
