package guard

import (
	"math/rand/v2"
	"time"
)

const (
	knownFor      = 30 * 24 * time.Hour // a network stays known-good after its last success, by default
	knownNetworks = 32                  // of one account

	sharedFor   = 7 * 24 * time.Hour // an account counts for its network after its last success there
	sharedAfter = 24 * time.Hour     // and from so long on after its first anywhere
	sharedMost  = 100                // such accounts count
	sharedFresh = 10 * time.Minute   // they are counted again after it
	sharedWalk  = 4096               // of a network's accounts are looked at
)

// A place is the number of a known, and 0 for none.
type place = uint32

// A known is a network that an account has logged in from. It is in two lists:
// of its account and of its network.
type known struct {
	account, network     key
	full                 time.Duration // of its budget
	area                 uint32        // of the network's area: half of its key
	first                uint32        // success of the account, when this network was new: seconds
	last                 uint32        // success from here
	ofAccount            place         // the next in the account's list
	ofNetwork, toNetwork place         // the next and the last in the network's list
}

// counts reports whether the account uses the network: it has come from there
// lately, and is no new one, which an attacker may have made for the purpose.
func (k *known) counts(now uint32) bool {
	return now-k.first >= uint32(sharedAfter/time.Second) && now-k.last <= uint32(sharedFor/time.Second)
}

// A house is a network that accounts have logged in from.
type house struct {
	first   place
	shared  uint8  // accounts that use it
	counted uint32 // when they were counted, in seconds
}

const chunk = 1 << 10

// regulars are the known-good networks of all accounts. Nothing that strangers
// do makes one go.
type regulars struct {
	limit    int
	keep     time.Duration // Config.KnownFor
	chunks   [][]known
	used     int     // places that were ever used
	free     []place // of them
	accounts map[key]place
	houses   map[key]house
}

func newRegulars(limit int) *regulars {
	return &regulars{limit: limit, keep: knownFor, accounts: make(map[key]place), houses: make(map[key]house)}
}

// expired reports whether k is known-good no more.
func (r *regulars) expired(k *known, now time.Duration) bool {
	return time.Duration(k.last)*time.Second+r.keep <= now
}

func (r *regulars) at(p place) *known { return &r.chunks[(p-1)/chunk][(p-1)%chunk] }

func (r *regulars) len() int { return r.used - len(r.free) }

// A familiarity is how well an account and a network know each other.
type familiarity struct {
	known *known        // nil: not, or no more
	area  bool          // the account has logged in from the area
	last  time.Duration // success of the account, from anywhere; 0: none
}

// look returns what is known of an account that comes from a network.
func (r *regulars) look(account, network, area key, now time.Duration) (f familiarity) {
	for p := r.accounts[account]; p != 0; {
		k := r.at(p)
		p = k.ofAccount
		if r.expired(k, now) {
			continue
		}
		f.last = max(f.last, time.Duration(k.last)*time.Second)
		f.area = f.area || k.area == uint32(area)
		if k.network == network {
			f.known = k
		}
	}
	return f
}

// welcomes reports whether a network is known-good for any account.
func (r *regulars) welcomes(network key, now time.Duration) bool {
	for p, n := r.houses[network].first, 0; p != 0 && n < sharedWalk; n++ {
		k := r.at(p)
		if !r.expired(k, now) {
			return true
		}
		p = k.ofNetwork
	}
	return false
}

// shared returns how many accounts use a network.
func (r *regulars) shared(network key, now time.Duration) int {
	h, ok := r.houses[network]
	if !ok {
		return 0
	}
	seconds := uint32(now / time.Second)
	if h.counted != 0 && seconds-h.counted < uint32(sharedFresh/time.Second) {
		return int(h.shared)
	}
	h.shared, h.counted = 0, seconds
	for p, n := h.first, 0; p != 0 && n < sharedWalk && h.shared < sharedMost; n++ {
		k := r.at(p)
		if k.counts(seconds) {
			h.shared++
		}
		p = k.ofNetwork
	}
	r.houses[network] = h
	return int(h.shared)
}

// greet remembers a success. It reports whether the network is new to the
// account.
func (r *regulars) greet(account, network, area key, at time.Duration) bool {
	seconds := uint32(at / time.Second)
	k := r.find(account, network)
	if k == nil {
		r.add(known{account: account, network: network, area: uint32(area), first: seconds, last: seconds})
		return true
	}
	isNew := r.expired(k, at)
	if isNew {
		k.first, k.full = seconds, 0
	}
	k.first, k.last = min(k.first, seconds), max(k.last, seconds)
	return isNew
}

func (r *regulars) find(account, network key) *known {
	for p := r.accounts[account]; p != 0; p = r.at(p).ofAccount {
		if k := r.at(p); k.network == network {
			return k
		}
	}
	return nil
}

// add adds k, which must be new. An account that has as many networks as it may
// loses the one it did not use for the longest time.
func (r *regulars) add(k known) {
	count, oldest := 0, place(0)
	for p := r.accounts[k.account]; p != 0; p = r.at(p).ofAccount {
		k.first = min(k.first, r.at(p).first)
		if count++; oldest == 0 || r.at(p).last < r.at(oldest).last {
			oldest = p
		}
	}
	if count >= knownNetworks {
		r.remove(oldest)
	}
	p := r.room()
	house := r.houses[k.network]
	k.ofAccount, k.ofNetwork, k.toNetwork = r.accounts[k.account], house.first, 0
	if house.first != 0 {
		r.at(house.first).toNetwork = p
	}
	house.first = p
	if k.counts(k.last) && house.shared < sharedMost { // at once: an office may have moved
		house.shared++
	}
	*r.at(p) = k
	r.accounts[k.account], r.houses[k.network] = p, house
}

// room returns a free place; when there is none, the one that was of no use for
// the longest time, of some at random.
func (r *regulars) room() place {
	const sample = 16
	if len(r.free) == 0 && r.used >= r.limit {
		oldest := place(1 + rand.N(r.used))
		for range sample - 1 {
			if p := place(1 + rand.N(r.used)); r.at(p).last < r.at(oldest).last {
				oldest = p
			}
		}
		r.remove(oldest)
	}
	if n := len(r.free); n > 0 {
		p := r.free[n-1]
		r.free = r.free[:n-1]
		return p
	}
	if r.used%chunk == 0 {
		r.chunks = append(r.chunks, make([]known, chunk))
	}
	r.used++
	return place(r.used)
}

func (r *regulars) remove(p place) {
	k := *r.at(p)
	if r.accounts[k.account] == p {
		if k.ofAccount == 0 {
			delete(r.accounts, k.account)
		} else {
			r.accounts[k.account] = k.ofAccount
		}
	} else {
		before := r.accounts[k.account]
		for r.at(before).ofAccount != p {
			before = r.at(before).ofAccount
		}
		r.at(before).ofAccount = k.ofAccount
	}
	if k.ofNetwork != 0 {
		r.at(k.ofNetwork).toNetwork = k.toNetwork
	}
	switch house := r.houses[k.network]; {
	case k.toNetwork != 0:
		r.at(k.toNetwork).ofNetwork = k.ofNetwork
	case k.ofNetwork == 0:
		delete(r.houses, k.network)
	default:
		house.first = k.ofNetwork
		r.houses[k.network] = house
	}
	*r.at(p) = known{}
	r.free = append(r.free, p)
}
