package bridge

import (
	"encoding/hex"
	"reflect"
	"testing"

	"postern/bridge/uidl"
)

// What is on disk is read by the next version and by the one before.
func TestFormatsOnDisk(t *testing.T) {
	known := snapshot{
		uidValidity: 7, uidNext: 900, proven: true, hash: 0x0102030405060708, record: stamp{version: 3, sum: 0xfffefdfc},
		messages: []message{{uid: 1, size: 100, marks: exact | fingerprinted}, {uid: 2, size: 70000, marks: unsized | deleted}, {uid: 800, size: 1, marks: removed | headerHashed}},
	}
	kept := known
	kept.messages = []message{known.messages[0], {uid: 2, size: 70000, marks: unsized}, known.messages[2]}
	stones := tombstoneSets{{7, 100, []uint32{3, 4, 99}}, {1 << 31, 0, []uint32{1}}}
	for _, test := range []struct {
		name, golden string
		encoded      []byte
		decoded      any
		decode       func([]byte) (any, error)
	}{
		{"snapshot", "030107840708070605040302010300000000000000fcfdfeff00000000030183320190b891029e0664eeec1713", known.encode(), kept, func(b []byte) (any, error) { return decodeSnapshot(b) }},
		{"tombstones", "020207640303015f8080808008000101c8027357", stones.encode(), stones, func(b []byte) (any, error) { return decodeTombstones(b) }},
		{"fingerprints", "0102020500000000000000d704000000000000000007000000000000009ba252f9", encodePrints([]uidl.Fingerprint{{UID: 1, Short: 5}, {UID: 300, Header: 7}}), []uidl.Fingerprint{{UID: 1, Short: 5}, {UID: 300, Header: 7}}, func(b []byte) (any, error) { return decodeFingerprints(b) }},
	} {
		if got := hex.EncodeToString(test.encoded); got != test.golden {
			t.Errorf("%s: %s, want %s", test.name, got, test.golden)
		}
		value, err := hex.DecodeString(test.golden)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := test.decode(value); err != nil || !reflect.DeepEqual(got, test.decoded) {
			t.Errorf("%s: %+v, %v, want %+v", test.name, got, err, test.decoded)
		}
	}
}

// Formats of before are read, and not written.
func TestFormerFormatsOnDisk(t *testing.T) {
	b, err := hex.DecodeString("020107840705000000000000000109c10c6ed7ea17")
	if err != nil {
		t.Fatal(err)
	}
	want := snapshot{uidValidity: 7, uidNext: 900, proven: true, hash: 5, record: formerStamp, messages: []message{{uid: 9, size: 100, marks: exact}}}
	if got, err := decodeSnapshot(b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("snapshot: %+v, %v, want %+v", got, err, want)
	}
	if b, err = hex.DecodeString("010764020301df1a2e9e"); err != nil {
		t.Fatal(err)
	}
	if got, err := decodeTombstones(b); err != nil || !reflect.DeepEqual(got, tombstoneSets{{7, 100, []uint32{3, 4}}}) {
		t.Errorf("tombstones: %+v, %v", got, err)
	}
}
