package password

import (
	"net/netip"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/state"
)

// Criterion: A device password's record in which one bit is flipped, that is moved to another account or device, or whose limits somebody without the key has changed, logs nobody in: the answer is temporary, or wrong for an account that has no such device.
func TestARecordOfADeviceIsSealed(t *testing.T) {
	store := new(state.Memory)
	d := &Devices{Bucket: store, Keys: [][]byte{presentKey, formerKey}}
	made, text := add(t, d, Device{Account: "alice", Protocols: []string{proxy.IMAP}, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Expires: "2099-12-31"}, Long)
	_, other := add(t, d, Device{Account: "alice", Name: "other"}, Long)
	at := func(account, text string) string {
		return index(presentKey, account, []byte(strings.ReplaceAll(text, "-", "")))
	}
	get := func(key string) []byte {
		t.Helper()
		value, err := store.Get(t.Context(), key)
		if err != nil || value == nil {
			t.Fatalf("no record, %v", err)
		}
		return append([]byte(nil), value...)
	}
	put := func(key string, value []byte) {
		t.Helper()
		if err := store.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, d, login("alice", text), 0, false) // notes the use, and seals again
	whole := get(at("alice", text))
	expect(t, d, login("alice", text), 0, false)
	for i := range 8 * len(whole) {
		flipped := append([]byte(nil), whole...)
		flipped[i/8] ^= 1 << (i % 8)
		put(at("alice", text), flipped)
		expect(t, d, login("alice", text), proxy.Unavailable, false)
		if l := (deviceLogin{"alice", made.ID, login("alice", text).Client}); i%97 == 0 && d.stands(t.Context(), l) == nil && !strings.Contains(string(flipped), made.ID) {
			t.Errorf("a session stands on a record with bit %d flipped", i)
		}
	}
	for _, value := range map[string]string{
		"another network":   strings.Replace(string(whole), "192.0.2.0/24", "0.0.0.0/0", 1),
		"another day":       strings.Replace(string(whole), "2099", "2199", 1),
		"more protocols":    strings.Replace(string(whole), "imap", "imap pop3", 1),
		"no limits, no key": strings.Replace(strings.Replace(string(whole), "192.0.2.0/24", "", 1), keyMark(presentKey), "00000000", 1),
		"another key":       strings.Replace(string(whole), keyMark(presentKey), keyMark(formerKey), 1),
		"the seal is gone":  string(whole[:len(whole)-33]),
		"another device's":  string(get(at("alice", other))),
	} {
		put(at("alice", text), []byte(value))
		expect(t, d, login("alice", text), proxy.Unavailable, false)
	}
	put(at("alice", text), whole)
	_, hash, _ := strings.Cut(at("alice", text), "\x00")
	put("bob\x00"+hash, whole) // moved to another account
	expect(t, d, login("bob", text), proxy.Wrong, false)
	put(at("bob", text), whole) // that needs the key: the seal is not the account's
	expect(t, d, login("bob", text), proxy.Unavailable, false)
	expect(t, d, login("alice", text), 0, false)
	expect(t, d, login("alice", other), 0, false)
}
