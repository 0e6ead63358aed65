package uidl

import (
	"encoding/hex"
	"reflect"
	"testing"
)

// onDisk is a record with all that a record can have.
func onDisk() *Record {
	r := New(7, Dovecot)
	g := r.Current()
	g.UIDNext, g.Since, g.Seen = 100, 20000, 20001
	g.Put([]Entry{{UID: 1, UIDL: "abc", Short: 5}, {UID: 2, UIDL: "abd", Header: 6, Vanished: 20001}, {UID: 70, Short: 8, Header: 9}})
	r.Renumber(8, must("cyrus"), []Entry{{UID: 3, UIDL: "abc"}}, 20002)
	r.Use(must("cyrus-old"), 40)
	return r
}

// What is on disk is read by the next version and by the one before.
func TestRecordOnDisk(t *testing.T) {
	head, blocks := onDisk().Encode()
	values := map[string]string{"head": hex.EncodeToString(head)}
	for _, b := range blocks {
		values[b.Name] = hex.EncodeToString(b.Value)
	}
	want := map[string]string{
		"head":             "02010202010702020800a29c01a29c01010101000002a7252bff010525762e25750028022575022d33010764a09c01a19c01020302010101c5731908010a25303858752530385876002c4621b6",
		"0000000100000000": "010300036162630500000000000000020d0201640600000000000000214e871d0a43",
		"0000000100000001": "0606080000000000000009000000000000003e560fc5",
		"0000000200000000": "03010003616263a7252bff",
	}
	if !reflect.DeepEqual(values, want) {
		t.Errorf("record: %q, want %q", values, want)
	}
	again, err := Decode(head, blocks)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := encodeJSON(t, again), encodeJSON(t, onDisk()); a != b {
		t.Errorf("read back: %s, want %s", a, b)
	}
}

func encodeJSON(t *testing.T, r *Record) string {
	b, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
