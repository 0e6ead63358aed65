package guard

import (
	"fmt"
	"time"
)

// A Bucket is a kind of limit that an attempt counts against.
type Bucket uint8

// The buckets. Those from Known to OAuth are token buckets; the others only bound how
// many there are at once.
const (
	NoBucket    Bucket = iota
	Known              // of an account, for one known-good network
	Pair               // of an account, for one network
	Network            // of a network: IPv4 /32, IPv6 /64
	Network24          // of an IPv4 /24
	Network56          // of an IPv6 /56
	Network48          // of an IPv6 /48
	Account            // of an account, one for each Tier but KnownGood
	Consecutive        // of an account: wrong passwords since its last login (StrictNIST)
	OAuth              // of a network, or of an account for one known-good network: refused bearer tokens of more than 256 octets
	Strangers          // attempts of strangers at the account
	Attempts           // attempts at the backends
	Sessions           // sessions of the account from the network
	Connections        // connections of the network
	Logins             // connections of the network that are not logged in
	bucketKinds
)

// Buckets returns the names of all buckets but NoBucket.
func Buckets() (all []string) {
	for b := Known; b < bucketKinds; b++ {
		all = append(all, b.String())
	}
	return all
}

// String returns the bucket's name in logs.
func (b Bucket) String() string {
	return [...]string{
		"none", "known_good", "pair", "network", "network_24", "network_56", "network_48",
		"account", "consecutive", "oauth", "strangers", "attempts", "sessions",
		"connections", "logins", "unknown",
	}[min(b, bucketKinds)]
}

// MarshalText implements encoding.TextMarshaler.
func (b Bucket) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bucket) UnmarshalText(text []byte) error {
	for one := range bucketKinds {
		if one.String() == string(text) {
			*b = one
			return nil
		}
	}
	return fmt.Errorf("%q is not a bucket", text)
}

// A bucket is the state of one token bucket.
type bucket struct {
	key              key
	fullAt           time.Duration // see gcra.go
	since            uint32        // beginning of the day that tries counts, in seconds
	account, network uint32        // owner, for Unlock: the low half of its key, or 0
	kind             Bucket
	tries            uint8 // of Pair: wrong or refused attempts in the day that begins with since
}

func (b *bucket) id() key { return b.key }

// priority is the time until the bucket is full; for Consecutive a part of it. A pair without debt keeps a
// little priority while it is not fresh.
func (b *bucket) priority(now time.Duration) time.Duration {
	debt := max(0, b.fullAt-now)
	switch {
	case b.kind == Consecutive:
		return debt / 1000
	case debt == 0 && b.triesToday(now) > 0:
		return 1
	}
	return debt
}

const day = 24 * time.Hour

func (b *bucket) triesToday(now time.Duration) uint8 {
	if b.tries == 0 || now-time.Duration(b.since)*time.Second >= day {
		return 0
	}
	return b.tries
}

func (b *bucket) countTry(now time.Duration) {
	if b.tries = b.triesToday(now); b.tries == 0 {
		b.since = uint32(now / time.Second)
	}
	if b.tries < 255 {
		b.tries++
	}
}

// A bucketTable has the token buckets of all kinds but Known, which the knownNetworks
// have. The Guard's lock protects it.
type bucketTable struct {
	salts     [bucketKinds]key // a bucket's key is that of its owner, salted
	pools     [tiers]key       // the salts of Account
	table     *table[bucket, *bucket]
	evicted   sketch
	evictions uint64
}

func newBucketTable(s secret, limit int) bucketTable {
	t := bucketTable{table: newTable[bucket](limit)}
	for b := range t.salts {
		t.salts[b] = key(sipHash(s, ofBucket, []byte{byte(b)}))
	}
	for tier := range t.pools {
		t.pools[tier] = key(sipHash(s, ofBucket, []byte{byte(Account), byte(tier)}))
	}
	return t
}

// fullAt returns when a bucket is full.
func (t *bucketTable) fullAt(k key, kind Bucket) time.Duration {
	if b := t.table.get(k); b != nil {
		return b.fullAt
	}
	if kind == Consecutive { // the sketch's error would last for ever
		return 0
	}
	return t.evicted.fullAt(k)
}

// bucketOf returns the bucket of k, which the caller may change. It belongs to account, to
// network or to both, as its kind says.
func (t *bucketTable) bucketOf(k key, kind Bucket, account, network key, now time.Duration) *bucket {
	fullAt := t.fullAt(k, kind)
	b := t.put(k, now)
	b.key, b.kind, b.fullAt = k, kind, fullAt
	switch kind {
	case Pair:
		b.account, b.network = uint32(account), uint32(network)
	case Account, Consecutive:
		b.account = uint32(account)
	case Network, OAuth:
		b.network = uint32(network)
	}
	return b
}

// put returns the bucket of k, or an empty entry for it. If it evicts a bucket, the
// sketch keeps the debt: eviction is no amnesty.
func (t *bucketTable) put(k key, now time.Duration) *bucket {
	return t.table.put(k, now, func(b *bucket) {
		if b.kind != Consecutive && b.fullAt > now {
			t.evicted.raise(b.key, b.fullAt)
			t.evictions++
		}
	})
}

// triesToday returns how many attempts of a pair were wrong or refused in a day.
func (t *bucketTable) triesToday(pair key, now time.Duration) uint8 {
	if b := t.table.get(pair ^ t.salts[Pair]); b != nil {
		return b.triesToday(now)
	}
	return 0
}

// reset makes the bucket of k full, also if it was evicted.
func (t *bucketTable) reset(k key) {
	t.remove(k)
	t.evicted.reset(k)
}

// remove makes the bucket of k full, unless it was evicted.
func (t *bucketTable) remove(k key) {
	if b := t.table.get(k); b != nil {
		*b = bucket{}
	}
}

// removeMatching makes all buckets full that match and were not evicted. It reports
// whether one of them was not full.
func (t *bucketTable) removeMatching(now time.Duration, match func(*bucket) bool) (owed bool) {
	for i := range segments {
		t.table.each(i, func(b *bucket) {
			if match(b) {
				owed = owed || b.fullAt > now
				*b = bucket{}
			}
		})
	}
	return owed
}
