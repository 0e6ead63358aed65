package state

import (
	"context"
	"errors"
)

// A Store keeps values outside of this process, for several processes. It has what a
// compare-and-swap needs and no more: Shared makes buckets of it. After an error of Swap
// the changes may be made, all of them or none: a Store never repeats a Swap by itself.
type Store interface {
	// Get returns the values of keys, in their order.
	Get(ctx context.Context, bucket string, keys []string) ([]Versioned, error)
	// Swap makes all changes, which are of different keys, if each key still has the version
	// in its change; otherwise it makes none and returns false. When Swap returns true, the
	// changes are on disk.
	Swap(ctx context.Context, bucket string, changes []Change) (bool, error)
	// Scan calls each for the keys that begin with prefix, in order, as they are at one moment,
	// until each returns an error. A scan that did not reach its end is an error.
	Scan(ctx context.Context, bucket, prefix string, each func(key string, value []byte) error) error
	// Probe returns nil if the store can be reached and has the record that is expected.
	// Connections that were open before are not used again.
	Probe(ctx context.Context) error
	Close() error
}

// A Versioned is the value of a key and its version. The zero value is that of a key without
// a value. Two values that follow each other have different versions.
type Versioned struct {
	Value   []byte `json:"value"`
	Version int64  `json:"version"`
}

// A Change replaces the value of a key, which has Version, by Value. Nil removes it.
type Change struct {
	Key     string
	Version int64
	Value   []byte
}

// errPermanent is wrapped by the error of a Store about one call, such as a key that is too
// long. It says nothing about other calls.
var errPermanent = errors.New("the store refuses this value")

// MetaBucket is a bucket of every record. Its IdentityKey is the random name of the record,
// and its MovedKey, if it has a value, says where the record was moved to: then nothing else
// in it is valid.
const (
	MetaBucket  = "meta"
	IdentityKey = "record"
	MovedKey    = "moved"
)

// An Identity says which record a store has.
type Identity struct {
	Name  string // the value of IdentityKey; "": there is no record, or it is not complete
	Moved string // the value of MovedKey
}

// Check returns an error unless there is a complete record.
func (i Identity) Check() error {
	switch {
	case i.Moved != "":
		return errors.New("the record was moved away: " + printable([]byte(i.Moved)))
	case i.Name == "":
		return ErrNoRecord
	}
	return nil
}

// ErrNoRecord reports that a store has no record, or one that is not yet complete.
var ErrNoRecord = errors.New("there is no complete record: run postern state migrate")

// printable returns at most 200 octets of a text from outside, with ? for what is not
// printable ASCII.
func printable(text []byte) string {
	const most = 200
	clean := make([]byte, 0, min(len(text), most))
	for _, c := range text[:min(len(text), most)] {
		if c < ' ' || c > '~' {
			c = '?'
		}
		clean = append(clean, c)
	}
	return string(clean)
}
