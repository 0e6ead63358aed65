package password

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/state"
	"postern/proxy/wire"
)

var (
	presentKey = bytes.Repeat([]byte("new "), 8)
	formerKey  = bytes.Repeat([]byte("old "), 8)
)

// login returns a Login over IMAP from 192.0.2.7.
func login(account, secret string) *proxy.Login {
	return &proxy.Login{
		Account: account, User: account, Mechanism: wire.MechanismPlain, Secret: proxy.NewSecret([]byte(secret)),
		Client: proxy.Client{Protocol: proxy.IMAP, Addr: netip.MustParseAddrPort("192.0.2.7:40000")},
	}
}

func add(t testing.TB, d *Devices, wanted Device, length int) (Device, string) {
	t.Helper()
	if wanted.Name == "" {
		wanted.Name = "copier"
	}
	made, secret, err := d.Add(t.Context(), wanted, length)
	if err != nil {
		t.Fatal(err)
	}
	return made, string(secret.Reveal())
}

// expect wants a Check to end with a reason; 0: the password is right.
func expect(t testing.TB, c Check, l *proxy.Login, want proxy.Reason, verified bool) {
	t.Helper()
	err := c.Check(t.Context(), l)
	r, _ := errors.AsType[*proxy.Refusal](err)
	if want == 0 && err != nil || want != 0 && (r == nil || r.Reason != want || r.Verified != verified) {
		t.Errorf("Check of %s = %v (verified: %v), want %v (verified: %v)", l.Account, err, r != nil && r.Verified, want, verified)
	}
}

// Criterion: A device password is shown once and stored as a keyed hash alone; case, spaces and dashes of what is typed do not count.
func TestDevicePasswordsAreTypedAsPeopleTypeThem(t *testing.T) {
	store := new(state.Memory)
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey}}
	made, text := add(t, d, Device{Account: "alice@example.org"}, Long)
	if plain := strings.ReplaceAll(text, "-", ""); len(plain) != 26 || len(text) > 32 || strings.ContainsAny(plain, "ilou") {
		t.Errorf("the password %d characters long, %d with dashes; want 26 of the alphabet, and at most 32", len(plain), len(text))
	}
	_, short := add(t, d, Device{Account: "alice@example.org"}, Short)
	if len(short) != 16 || strings.Contains(short, "-") {
		t.Errorf("a short password has %d characters, want 16 and no dash", len(short))
	}
	mistaken := strings.NewReplacer("0", "O", "1", "l")
	for _, typed := range []string{
		text, short, strings.ToUpper(text), strings.ReplaceAll(text, "-", " "), strings.ReplaceAll(text, "-", ""),
		" " + text + " ", mistaken.Replace(text), strings.ReplaceAll(mistaken.Replace(text), "l", "I"), short[:8] + " " + short[8:],
	} {
		l := login("alice@example.org", typed)
		expect(t, d, l, 0, false)
		if l.Device == "" {
			t.Error("the Login does not name the device")
		}
	}
	other := "0"
	if text[0] == '0' {
		other = "2"
	}
	for _, typed := range []string{
		"", "secret of alice", text[:len(text)-1], text + "0", other + text[1:], short[:15], text + short, strings.Repeat("-", 1000) + text,
		text + "\x00", strings.Repeat(text, 10),
	} {
		expect(t, d, login("alice@example.org", typed), proxy.Wrong, false)
	}
	expect(t, d, login("bob@example.org", text), proxy.Wrong, false)
	expect(t, d, login("alice@example.org\x00", text), proxy.Wrong, false)

	err := store.Scan(t.Context(), "", func(key string, value []byte) error {
		for _, secret := range []string{text, strings.ReplaceAll(text, "-", ""), short} {
			if strings.Contains(key, secret) || bytes.Contains(value, []byte(secret)) {
				t.Error("the store has the password")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = d.List(t.Context(), "", func(l Device) error {
		if printed := fmt.Sprintf("%+v", l); strings.Contains(printed, text) || strings.Contains(printed, short) {
			t.Error("the listing has the password")
		}
		return nil
	})
	if err != nil || made.ID == "" {
		t.Errorf("made %+v, %v", made, err)
	}
}

// Criterion: A right device password from another network, for another protocol or after its last day is refused as suspended, and costs no guess.
func TestARightPasswordOutsideOfItsLimitsIsVerified(t *testing.T) {
	day := func(text string) time.Time {
		at, err := time.ParseInLocation(time.DateTime, text, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	now := day("2026-11-29 12:00:00")
	d := &Devices{Bucket: new(state.Memory), Keys: [][]byte{presentKey}, Now: func() time.Time { return now }}
	_, text := add(t, d, Device{
		Account: "alice", Protocols: []string{proxy.Submission, proxy.IMAP},
		Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}, Expires: "2027-12-31",
	}, Long)
	for _, c := range []struct {
		name, protocol, from string
		at                   time.Time
		want                 proxy.Reason
	}{
		{"within", proxy.IMAP, "192.0.2.7", now, 0},
		{"other protocol of the list", proxy.Submission, "192.0.2.7", now, 0},
		{"IPv6", proxy.IMAP, "2001:db8::1", now, 0},
		{"IPv4 in IPv6", proxy.IMAP, "::ffff:192.0.2.7", now, 0},
		{"last minute", proxy.IMAP, "192.0.2.7", day("2027-12-31 23:59:59"), 0},
		{"midnight", proxy.IMAP, "192.0.2.7", day("2028-01-01 00:00:00"), proxy.Suspended},
		{"protocol", proxy.POP3, "192.0.2.7", now, proxy.Suspended},
		{"network", proxy.IMAP, "198.51.100.7", now, proxy.Suspended},
		{"network of IPv6", proxy.IMAP, "2001:db8:1::1", now, proxy.Suspended},
	} {
		t.Run(c.name, func(t *testing.T) {
			now = c.at
			l := login("alice", text)
			l.Client.Protocol, l.Client.Addr = c.protocol, netip.AddrPortFrom(netip.MustParseAddr(c.from), 40000)
			expect(t, d, l, c.want, c.want != 0)
			if c.want != 0 && l.Device != "" {
				t.Error("a refused Login names a device")
			}
			expect(t, d, login("alice", "0"+text[1:len(text)-1]+"0"), proxy.Wrong, false) // a wrong one is wrong as ever
		})
	}
}

// Criterion: After a new key was written before the old one, device passwords of both keys work; without the old key its passwords are wrong, and listed as such.
func TestDevicesOfTheFormerKeyWorkUntilTheKeyIsGone(t *testing.T) {
	store := new(state.Memory)
	before := &Devices{Bucket: store, Keys: [][]byte{formerKey}}
	_, old := add(t, before, Device{Account: "alice"}, Long)
	both := &Devices{Bucket: store, Keys: [][]byte{presentKey, formerKey}}
	_, fresh := add(t, both, Device{Account: "alice"}, Long)
	expect(t, both, login("alice", old), 0, false)
	expect(t, both, login("alice", fresh), 0, false)
	expect(t, before, login("alice", fresh), proxy.Wrong, false)
	after := &Devices{Bucket: store, Keys: [][]byte{presentKey}}
	expect(t, after, login("alice", old), proxy.Wrong, false)
	expect(t, after, login("alice", fresh), 0, false)
	for d, want := range map[*Devices][]int{both: {1, 2}, after: {0, 1}} {
		var lines []int
		if err := d.List(t.Context(), "alice", func(one Device) error { lines = append(lines, one.Key); return nil }); err != nil {
			t.Fatal(err)
		}
		if slices.Sort(lines); !slices.Equal(lines, want) {
			t.Errorf("lines of the keys = %v, want %v", lines, want)
		}
	}
}

// A failing bucket has a store that cannot be read or written.
type failing struct {
	Bucket
	get, update bool
	gets        int
}

var errStore = errors.New("the disk does not answer")

func (f *failing) Get(ctx context.Context, key string) ([]byte, error) {
	if f.gets++; f.get {
		return nil, errStore
	}
	return f.Bucket.Get(ctx, key)
}

func (f *failing) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	if f.update {
		return errStore
	}
	return f.Bucket.Update(ctx, key, change)
}

// Criterion: A store of device passwords that cannot be read makes a login temporary, never wrong; one that cannot be written does not refuse a right password.
func TestAStoreThatFailsIsTemporary(t *testing.T) {
	store := &failing{Bucket: new(state.Memory)}
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey}}
	_, text := add(t, d, Device{Account: "alice"}, Long)
	store.update = true
	expect(t, d, login("alice", text), 0, false)
	store.get = true
	expect(t, d, login("alice", text), proxy.Unavailable, false)
	expect(t, d, login("alice", "7"+strings.Repeat("0", Long-1)), proxy.Unavailable, false)
	// What another Check says goes before that, if the other one knows the password.
	always := Verify(func(context.Context, *proxy.Login) error { return nil })
	never := Verify(func(context.Context, *proxy.Login) error { return wrong() })
	expect(t, Checks{d, always}, login("alice", text), 0, false)
	expect(t, Checks{d, never}, login("alice", text), proxy.Unavailable, false)
	expect(t, Checks{never, d}, login("alice", text), proxy.Unavailable, false)
	store.get = false
	if err := store.Bucket.Update(t.Context(), index(presentKey, "alice", []byte(strings.ReplaceAll(text, "-", ""))), func([]byte) ([]byte, error) { return []byte("{damaged"), nil }); err != nil {
		t.Fatal(err)
	}
	expect(t, d, login("alice", text), proxy.Unavailable, false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Check(ctx, login("alice", text)); proxy.ReasonOf(err) == proxy.Wrong || err == nil {
		t.Errorf("Check after the client has left = %v", err)
	}
}

func TestTheDayOfTheLastUseIsNotedOnce(t *testing.T) {
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.Local)
	store := &failing{Bucket: new(state.Memory)}
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey}, Now: func() time.Time { return now }}
	made, text := add(t, d, Device{Account: "alice"}, Long)
	used := func() (day string) {
		if err := d.List(t.Context(), "alice", func(one Device) error { day = one.LastUsed; return nil }); err != nil {
			t.Fatal(err)
		}
		return day
	}
	if day := used(); day != "" || made.Made != "2026-11-29" {
		t.Errorf("before: last used %q, made %q", day, made.Made)
	}
	expect(t, d, login("alice", text), 0, false)
	if day := used(); day != "2026-11-29" {
		t.Errorf("last used %q", day)
	}
	store.update = true // the second login of a day writes nothing
	now = now.AddDate(0, 0, -1)
	expect(t, d, login("alice", text), 0, false)
	store.update = false
	now = now.AddDate(0, 0, 3)
	expect(t, d, login("alice", text), 0, false)
	if day := used(); day != "2026-12-01" {
		t.Errorf("last used %q", day)
	}
}

// Criterion: A device that is removed while a login uses it stays removed, and its session does not open.
func TestARemovedDeviceStaysRemoved(t *testing.T) {
	store := new(state.Memory)
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey}}
	made, text := add(t, d, Device{Account: "alice", Name: "phone"}, Long)
	kept, other := add(t, d, Device{Account: "alice", Name: "copier"}, Long)
	l := login("alice", text)
	expect(t, d, l, 0, false)
	session := deviceLogin{"alice", l.Device, l.Client}
	if err := d.stands(t.Context(), session); err != nil {
		t.Errorf("stands = %v", err)
	}
	var at string
	if err := store.Scan(t.Context(), prefix("alice"), func(key string, value []byte) error {
		if s, _ := parseDevice(value); s.ID == made.ID {
			at = key
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	removed, err := d.Remove(t.Context(), "alice", made.ID)
	if err != nil || removed.Name != "phone" {
		t.Errorf("Remove = %+v, %v", removed, err)
	}
	d.noteUse(t.Context(), presentKey, at, "2026-11-29") // of the login that came a moment before
	expect(t, d, login("alice", text), proxy.Wrong, false)
	if err := d.stands(t.Context(), session); proxy.ReasonOf(err) != proxy.Wrong {
		t.Errorf("stands after Remove = %v, want wrong", err)
	}
	expect(t, d, login("alice", other), 0, false)
	if _, err := d.Remove(t.Context(), "alice", made.ID); !errors.Is(err, ErrNoDevice) {
		t.Errorf("a second Remove = %v", err)
	}
	if _, err := d.Remove(t.Context(), "bob", kept.ID); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Remove of another account's device = %v", err)
	}
	if n, err := d.Forget(t.Context(), "alice"); n != 1 || err != nil {
		t.Errorf("Forget = %d, %v", n, err)
	}
	expect(t, d, login("alice", other), proxy.Wrong, false)
}

// Criterion: A damaged record of one device leaves the others of the account, and of other accounts, as they are: devices can be added, the record is listed with an id of its own, and is removed by that alone.
func TestADamagedDeviceHarmsNoOther(t *testing.T) {
	store := new(state.Memory)
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey}}
	made, text := add(t, d, Device{Account: "alice", Name: "first"}, Long)
	add(t, d, Device{Account: "bob"}, Long)
	for _, damaged := range []string{"alice\x000", "alice\x00z", "bob\x00z"} {
		if err := store.Put(t.Context(), damaged, []byte("damaged")); err != nil {
			t.Fatal(err)
		}
	}
	l := login("alice", text)
	expect(t, d, l, 0, false)
	if err := d.stands(t.Context(), deviceLogin{"alice", l.Device, l.Client}); err != nil {
		t.Errorf("stands = %v", err)
	}
	if err := d.stands(t.Context(), deviceLogin{"alice", "gone", l.Client}); proxy.ReasonOf(err) != proxy.Unavailable {
		t.Errorf("stands of a device that may be the damaged one = %v, want a temporary refusal", err)
	}
	_, second := add(t, d, Device{Account: "alice", Name: "one more"}, Long)
	list := func() (ids, damaged []string) {
		t.Helper()
		if err := d.List(t.Context(), "alice", func(one Device) error {
			if one.Damaged != strings.HasPrefix(one.ID, "damaged-") || one.Damaged != (one.Name == "") {
				t.Errorf("List shows %+v", one)
			}
			if ids = append(ids, one.ID); one.Damaged {
				damaged = append(damaged, one.ID)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return ids, damaged
	}
	ids, damaged := list()
	if len(ids) != 4 || len(damaged) != 2 || damaged[0] == damaged[1] {
		t.Fatalf("List shows %v, of which %v are damaged", ids, damaged)
	}
	if _, err := d.Remove(t.Context(), "bob", damaged[0]); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Remove of another account's device = %v", err)
	}
	if removed, err := d.Remove(t.Context(), "alice", damaged[0]); err != nil || !removed.Damaged {
		t.Errorf("Remove = %+v, %v", removed, err)
	}
	if _, left := list(); len(left) != 1 || left[0] != damaged[1] {
		t.Errorf("after Remove List shows %v as damaged", left)
	}
	expect(t, d, login("alice", text), 0, false)
	expect(t, d, login("alice", second), 0, false)
	if _, err := d.Remove(t.Context(), "alice", made.ID); err != nil {
		t.Errorf("Remove = %v", err)
	}
	if n, err := d.Forget(t.Context(), "alice"); n != 2 || err != nil {
		t.Errorf("Forget = %d, %v", n, err)
	}
}

// Criterion: Device passwords are counted by state, so that an operator sees those that do not work.
func TestDevicesAreCounted(t *testing.T) {
	store := new(state.Memory)
	before := &Devices{Bucket: store, Keys: [][]byte{formerKey}}
	add(t, before, Device{Account: "carol"}, Long)
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey}}
	add(t, d, Device{Account: "alice"}, Long)
	add(t, d, Device{Account: "alice", Expires: d.today()}, Long)
	add(t, d, Device{Account: "bob"}, Long)
	if err := store.Put(t.Context(), "dave\x00z", []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	count := func(d *Devices, want Counts) {
		t.Helper()
		if got, err := d.Count(t.Context()); got != want || err != nil {
			t.Errorf("Count = %+v, %v, want %+v", got, err, want)
		}
	}
	count(d, Counts{Accounts: 4, Working: 3, Foreign: 1, Damaged: 1})
	count(&Devices{Bucket: store, Keys: [][]byte{presentKey, formerKey}}, Counts{Accounts: 4, Working: 4, Damaged: 1})
	d.Now = func() time.Time { return time.Now().AddDate(0, 0, 2) }
	count(d, Counts{Accounts: 4, Working: 2, Expired: 1, Foreign: 1, Damaged: 1})
	count(&Devices{Bucket: new(state.Memory)}, Counts{})
}

func TestWhatANewDeviceMayBe(t *testing.T) {
	d := &Devices{Bucket: new(state.Memory), Keys: [][]byte{presentKey}}
	for name, wanted := range map[string]Device{
		"no account":      {Name: "copier"},
		"NUL in account":  {Account: "a\x00b", Name: "copier"},
		"no name":         {Account: "alice"},
		"a long name":     {Account: "alice", Name: strings.Repeat("x", 65)},
		"escapes in name": {Account: "alice", Name: "copier\x1b[2J"},
		"no day":          {Account: "alice", Name: "copier", Expires: "tomorrow"},
		"a past day":      {Account: "alice", Name: "copier", Expires: "2020-01-01"},
	} {
		if _, _, err := d.Add(t.Context(), wanted, Long); err == nil {
			t.Errorf("%s: there is no error", name)
		}
	}
	for range MaxDevices {
		add(t, d, Device{Account: "alice"}, Short)
	}
	if _, _, err := d.Add(t.Context(), Device{Account: "alice", Name: "one more"}, Long); err == nil {
		t.Error("an account has more devices than MaxDevices")
	}
	if _, _, err := (&Devices{Bucket: new(state.Memory)}).Add(t.Context(), Device{Account: "alice", Name: "copier"}, Long); !errors.Is(err, ErrNoKey) {
		t.Errorf("Add without a key = %v", err)
	}
	// Without a key nothing is right.
	expect(t, &Devices{Bucket: d.Bucket}, login("alice", strings.Repeat("0", Long)), proxy.Wrong, false)
}

// Criterion: A wrong device password costs the same for accounts with devices, without devices, and unknown ones.
func TestAWrongDevicePasswordCostsTheSameForAll(t *testing.T) {
	store := &failing{Bucket: boltBucket(t)}
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey, formerKey}}
	for range 20 {
		add(t, d, Device{Account: "alice@example.org"}, Long)
	}
	text := strings.Repeat("7", Long)
	known, unknown := login("alice@example.org", text), login("nobody@example.org", text)
	for _, l := range []*proxy.Login{known, unknown} {
		store.gets = 0
		if expect(t, d, l, proxy.Wrong, false); store.gets != 2 {
			t.Errorf("%s: %d reads of the store, want 2", l.Account, store.gets)
		}
	}
	sameTime(t, 1000, func() { _ = d.Check(t.Context(), known) }, func() { _ = d.Check(t.Context(), unknown) })
}

// sameTime wants the medians of n runs of each to be within 10 %, in one of ten tries: the
// machine has other work.
func sameTime(t *testing.T, n int, one, other func()) {
	t.Helper()
	var a, b time.Duration
	for range 10 {
		var ones, others []time.Duration
		for range n {
			begun := time.Now()
			one()
			between := time.Now()
			other()
			ones, others = append(ones, between.Sub(begun)), append(others, time.Since(between))
		}
		slices.Sort(ones)
		slices.Sort(others)
		if a, b = ones[n/2], others[n/2]; max(a, b) <= min(a, b)*11/10 {
			return
		}
	}
	t.Errorf("the medians are %v and %v, want them within 10 %%", a, b)
}

func boltBucket(t testing.TB) *state.Bucket {
	t.Helper()
	b, err := state.Open(filepath.Join(t.TempDir(), "record.db"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b.Bucket("devices")
}

// BenchmarkDeviceCheck is a right device password in a file with 200 devices.
func BenchmarkDeviceCheck(b *testing.B) {
	d := &Devices{Bucket: boltBucket(b), Keys: [][]byte{presentKey}}
	for i := range 200 {
		add(b, d, Device{Account: fmt.Sprintf("user%d@example.org", i)}, Long)
	}
	_, text := add(b, d, Device{Account: "alice@example.org"}, Long)
	l := login("alice@example.org", text)
	ctx := b.Context()
	for b.Loop() {
		if err := d.Check(ctx, l); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDevicesOfAnAccount reports what a device takes in the file, and how long it takes to count all.
func BenchmarkDevicesOfAnAccount(b *testing.B) {
	const devices = 20_000
	path := filepath.Join(b.TempDir(), "record.db")
	store, err := state.Open(path, state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	d := &Devices{Bucket: store.Bucket("devices"), Keys: [][]byte{presentKey}}
	var adding sync.WaitGroup
	for from := range 100 {
		adding.Go(func() {
			for i := from; i < devices; i += 100 {
				add(b, d, Device{Account: fmt.Sprintf("user%05d@mail.customer.example", i), Name: "copier, 3rd floor", Protocols: []string{"submission"}}, Long)
			}
		})
	}
	adding.Wait()
	octets := 0
	err = d.Bucket.Scan(b.Context(), "", func(key string, value []byte) error { octets += len(key) + len(value); return nil })
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if c, err := d.Count(b.Context()); err != nil || c.Working != devices {
			b.Fatal(c, err)
		}
	}
	b.ReportMetric(float64(octets)/devices, "B/device")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/devices, "µs/device")
}

func FuzzNormalize(f *testing.F) {
	f.Add("kkm62-x7rq3-nna6q-bdwys-68df13")
	f.Add("KKM62 X7RQ3 NNA6Q OIl")
	f.Fuzz(func(t *testing.T, typed string) {
		var out, again [Long]byte
		n, ok := normalize(&out, []byte(typed))
		if !ok {
			return
		}
		if n != Long && n != Short || strings.Trim(string(out[:n]), alphabet) != "" {
			t.Fatalf("normalize(%q) = %q", typed, out[:n])
		}
		if m, ok := normalize(&again, grouped(out[:n])); !ok || string(again[:m]) != string(out[:n]) {
			t.Errorf("%q is read as %q", grouped(out[:n]), again[:m])
		}
	})
}

func FuzzParseDevice(f *testing.F) {
	f.Add(storedDevice{
		ID: "k3v7q2mx", Name: "copier, 3rd floor", Made: "2026-11-29", Protocols: []string{"imap", "pop3"},
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}, Expires: "2027-12-31",
		LastUsed: "2026-11-30", KeyMark: "01234567",
	}.encode(presentKey, "alice\x00at"))
	f.Add([]byte("3\tof a newer Postern"))
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := parseDevice(value)
		if err != nil {
			return
		}
		again, err := parseDevice(s.encode(presentKey, "at"))
		if err != nil || !slices.Equal(again.Protocols, s.Protocols) || !slices.Equal(again.Networks, s.Networks) || again.Name != s.Name || again.KeyMark != s.KeyMark {
			t.Errorf("%+v is read back as %+v, %v", s, again, err)
		}
	})
}
