package bridge

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"postern/bridge/uidl"
	"postern/proxy/state"
)

// shelves returns a cache and a record with all that an account can have, for
// each of accounts.
func shelves(t *testing.T, accounts ...string) (cache, record *state.Memory) {
	t.Helper()
	cache, record = new(state.Memory), new(state.Memory)
	put := func(in *state.Memory, key string, value []byte) {
		t.Helper()
		if err := in.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	for _, account := range accounts {
		r := uidl.New(7, uidl.Dovecot)
		r.Current().Put([]uidl.Entry{{UID: 5, UIDL: "x"}})
		head, blocks := r.Encode()
		put(record, key(account), head)
		for _, b := range blocks {
			put(record, key(account)+blocksOf+b.Name, b.Value)
		}
		put(record, tombstonesKey(account), tombstoneSets{{7, 9, []uint32{3, 8}}}.encode())
		put(cache, key(account), snapshot{uidValidity: 7, uidNext: 9, messages: []message{{uid: 1, size: 10}, {uid: 5, size: 32}}}.encode())
		put(cache, fingerprintsKey(account), encodePrints([]uidl.Fingerprint{{UID: 1}}))
	}
	return cache, record
}

func TestWhatIsStoredOfAnAccountIsShownAndErased(t *testing.T) {
	cache, record := shelves(t, "alice", "alice@example.org", "bob")
	got, err := Lookup(t.Context(), cache, record, "alice")
	if err != nil {
		t.Fatal(err)
	}
	want := Stored{Record: got.Record, Deleted: []uint32{3, 8}, Listing: &Listing{7, 9, 2, 42}, Fingerprints: 1}
	if !reflect.DeepEqual(got, want) || got.Record == nil || got.Record.Current().UIDValidity != 7 || len(got.Record.Current().Entries) != 1 {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := Erase(t.Context(), cache, record, []string{"alice", "carol"}); err != nil {
		t.Fatal(err)
	}
	if got, err := Lookup(t.Context(), cache, record, "alice"); err != nil || !reflect.DeepEqual(got, Stored{}) {
		t.Errorf("after it: %+v, %v", got, err)
	}
	for _, bucket := range []Bucket{cache, record} {
		if got, err := Accounts(t.Context(), bucket); err != nil || !reflect.DeepEqual(got, []string{"alice@example.org", "bob"}) {
			t.Errorf("left are %q, %v", got, err)
		}
	}
	if got, err := Lookup(t.Context(), nil, nil, "bob"); err != nil || !reflect.DeepEqual(got, Stored{}) {
		t.Errorf("without stores: %+v, %v", got, err)
	}
}

func TestEveryDamagedRecordIsNamed(t *testing.T) {
	cache, record := shelves(t, "alice", "bob", "carol")
	for _, k := range []string{key("alice"), tombstonesKey("bob")} {
		if err := record.Put(t.Context(), k, []byte("damaged")); err != nil {
			t.Fatal(err)
		}
	}
	n, damaged, err := Check(t.Context(), record)
	if err != nil || n != 6 || len(damaged) != 2 {
		t.Fatalf("%d, %v, %v; want 6 with 2 damaged", n, damaged, err)
	}
	if !errors.Is(damaged[0], uidl.ErrDamaged) || !errors.Is(damaged[1], errDamaged) {
		t.Error(damaged)
	}
	got, err := Lookup(t.Context(), cache, record, "bob")
	if !errors.Is(err, errDamaged) || got.Record == nil || got.Listing == nil {
		t.Errorf("of bob: %+v, %v; want what can be read", got, err)
	}
}

// encodePrints returns prints, ascending by UID, as they were remembered in the
// cache.
func encodePrints(prints []uidl.Fingerprint) []byte {
	b := make([]byte, 0, 16+12*len(prints))
	b = append(b, fingerprintsVersion)
	b = binary.AppendUvarint(b, uint64(len(prints)))
	last := uint32(0)
	for _, p := range prints {
		delta := uint64(p.UID-last) << 1
		if p.Header != 0 {
			delta |= 1
		}
		b = binary.LittleEndian.AppendUint64(binary.AppendUvarint(b, delta), p.Short)
		if p.Header != 0 {
			b = binary.LittleEndian.AppendUint64(b, p.Header)
		}
		last = p.UID
	}
	return castagnoliOf(b)
}

// castagnoliOf returns b with its checksum.
func castagnoliOf(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}
