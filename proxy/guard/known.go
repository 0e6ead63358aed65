package guard

import (
	"math/rand/v2"
	"time"
)

const (
	maxNetworks = 32 // known networks of one account

	activeFor      = 7 * 24 * time.Hour // an account is active in a network for so long after its last login there
	activeAfter    = 24 * time.Hour     // and only from so long after its first login anywhere
	activeCacheFor = 10 * time.Minute   // the number of active accounts is recounted after it
	maxActive      = 100                // active accounts that count
	maxWalk        = 4096               // accounts of a network that are looked at
)

// A pairIndex is the index of a knownPair, from 1; 0: none.
type pairIndex = uint32

// A knownPair is an account and a network that the account has logged in from. It is
// in two linked lists: that of its account and that of its network.
type knownPair struct {
	account, network             key
	fullAt                       time.Duration // of its Known bucket
	area                         uint32        // the network's area: the low half of its key
	first                        uint32        // the earliest login of the account that was known when this pair was added, in seconds
	last                         uint32        // last login of the account from the network, in seconds
	nextOfAccount                pairIndex
	nextOfNetwork, prevOfNetwork pairIndex
}

// isActive reports whether the account uses the network: it has logged in from there
// lately, and it is not new, because an attacker may have created it for that purpose.
func (k *knownPair) isActive(now uint32) bool {
	return now-k.first >= uint32(activeAfter/time.Second) && now-k.last <= uint32(activeFor/time.Second)
}

// A knownNetwork is a network that accounts have logged in from.
type knownNetwork struct {
	first   pairIndex
	active  uint8  // active accounts
	counted uint32 // when active was counted, in seconds
}

const chunkSize = 1 << 10

// A knownNetworks has the known-good networks of all accounts, with their Known
// buckets. Failed attempts cannot evict a network. The Guard's lock protects it.
type knownNetworks struct {
	limit    int
	keepFor  time.Duration // Config.KnownFor
	chunks   [][]knownPair
	used     int         // pairs in chunks, including free ones
	free     []pairIndex // removed pairs, to be reused
	accounts map[key]pairIndex
	networks map[key]knownNetwork
}

func newKnownNetworks(limit int, keepFor time.Duration) *knownNetworks {
	return &knownNetworks{limit: limit, keepFor: keepFor, accounts: make(map[key]pairIndex), networks: make(map[key]knownNetwork)}
}

// expired reports whether k is no longer known-good.
func (n *knownNetworks) expired(k *knownPair, now time.Duration) bool {
	return time.Duration(k.last)*time.Second+n.keepFor <= now
}

func (n *knownNetworks) at(i pairIndex) *knownPair {
	return &n.chunks[(i-1)/chunkSize][(i-1)%chunkSize]
}

func (n *knownNetworks) len() int { return n.used - len(n.free) }

// A history is what is known about an account and a network.
type history struct {
	known *knownPair    // nil: the network is not known-good for the account
	area  bool          // the account has logged in from the area
	last  time.Duration // last login of the account from anywhere; 0: none
}

// history returns what is known about an account and a network.
func (n *knownNetworks) history(account, network, area key, now time.Duration) (h history) {
	for i := n.accounts[account]; i != 0; {
		k := n.at(i)
		i = k.nextOfAccount
		if n.expired(k, now) {
			continue
		}
		h.last = max(h.last, time.Duration(k.last)*time.Second)
		h.area = h.area || k.area == uint32(area)
		if k.network == network {
			h.known = k
		}
	}
	return h
}

// has reports whether a network is known-good for any account.
func (n *knownNetworks) has(network key, now time.Duration) bool {
	for i, walked := n.networks[network].first, 0; i != 0 && walked < maxWalk; walked++ {
		k := n.at(i)
		if !n.expired(k, now) {
			return true
		}
		i = k.nextOfNetwork
	}
	return false
}

// hasAccount reports whether an account has logged in from any network.
func (n *knownNetworks) hasAccount(account key) bool { return n.accounts[account] != 0 }

// activeAccounts returns how many accounts use a network.
func (n *knownNetworks) activeAccounts(network key, now time.Duration) int {
	k, ok := n.networks[network]
	if !ok {
		return 0
	}
	seconds := uint32(now / time.Second)
	if k.counted != 0 && seconds-k.counted < uint32(activeCacheFor/time.Second) {
		return int(k.active)
	}
	k.active, k.counted = 0, seconds
	for i, walked := k.first, 0; i != 0 && walked < maxWalk && k.active < maxActive; walked++ {
		pair := n.at(i)
		if pair.isActive(seconds) {
			k.active++
		}
		i = pair.nextOfNetwork
	}
	n.networks[network] = k
	return int(k.active)
}

// add records a login. It reports whether the network is new to the account.
func (n *knownNetworks) add(account, network, area key, at time.Duration) bool {
	seconds := uint32(at / time.Second)
	k := n.find(account, network)
	if k == nil {
		n.insert(knownPair{account: account, network: network, area: uint32(area), first: seconds, last: seconds})
		return true
	}
	isNew := n.expired(k, at)
	if isNew {
		k.first, k.fullAt = seconds, 0
	}
	k.first, k.last = min(k.first, seconds), max(k.last, seconds)
	return isNew
}

// find returns the pair of an account and a network, also if it has expired, or nil.
func (n *knownNetworks) find(account, network key) *knownPair {
	for i := n.accounts[account]; i != 0; i = n.at(i).nextOfAccount {
		if k := n.at(i); k.network == network {
			return k
		}
	}
	return nil
}

// insert inserts k, which must not exist. An account with maxNetworks networks loses
// the one with the oldest login.
func (n *knownNetworks) insert(k knownPair) {
	count, oldest := 0, pairIndex(0)
	for i := n.accounts[k.account]; i != 0; i = n.at(i).nextOfAccount {
		k.first = min(k.first, n.at(i).first)
		if count++; oldest == 0 || n.at(i).last < n.at(oldest).last {
			oldest = i
		}
	}
	if count >= maxNetworks {
		n.remove(oldest)
	}
	i := n.allocate()
	network := n.networks[k.network]
	k.nextOfAccount, k.nextOfNetwork, k.prevOfNetwork = n.accounts[k.account], network.first, 0
	if network.first != 0 {
		n.at(network.first).prevOfNetwork = i
	}
	network.first = i
	if k.isActive(k.last) && network.active < maxActive { // not only at the next count: an office may have moved
		network.active++
	}
	*n.at(i) = k
	n.accounts[k.account], n.networks[k.network] = i, network
}

// allocate returns a free index. At the limit it removes the pair with the oldest login
// of a random sample.
func (n *knownNetworks) allocate() pairIndex {
	const sample = 16
	if len(n.free) == 0 && n.used >= n.limit {
		oldest := pairIndex(1 + rand.N(n.used))
		for range sample - 1 {
			if i := pairIndex(1 + rand.N(n.used)); n.at(i).last < n.at(oldest).last {
				oldest = i
			}
		}
		n.remove(oldest)
	}
	if last := len(n.free) - 1; last >= 0 {
		i := n.free[last]
		n.free = n.free[:last]
		return i
	}
	if n.used%chunkSize == 0 {
		n.chunks = append(n.chunks, make([]knownPair, chunkSize))
	}
	n.used++
	return pairIndex(n.used)
}

func (n *knownNetworks) remove(i pairIndex) {
	k := *n.at(i)
	if n.accounts[k.account] == i {
		if k.nextOfAccount == 0 {
			delete(n.accounts, k.account)
		} else {
			n.accounts[k.account] = k.nextOfAccount
		}
	} else {
		before := n.accounts[k.account]
		for n.at(before).nextOfAccount != i {
			before = n.at(before).nextOfAccount
		}
		n.at(before).nextOfAccount = k.nextOfAccount
	}
	if k.nextOfNetwork != 0 {
		n.at(k.nextOfNetwork).prevOfNetwork = k.prevOfNetwork
	}
	switch network := n.networks[k.network]; {
	case k.prevOfNetwork != 0:
		n.at(k.prevOfNetwork).nextOfNetwork = k.nextOfNetwork
	case k.nextOfNetwork == 0:
		delete(n.networks, k.network)
	default:
		network.first = k.nextOfNetwork
		n.networks[k.network] = network
	}
	*n.at(i) = knownPair{}
	n.free = append(n.free, i)
}

// countOf returns how many known networks an account has, including expired ones.
func (n *knownNetworks) countOf(account key) (count int) {
	for i := n.accounts[account]; i != 0; i = n.at(i).nextOfAccount {
		count++
	}
	return count
}

// resetAccount makes all Known buckets of an account full. It reports whether one was not.
func (n *knownNetworks) resetAccount(account key, now time.Duration) (owed bool) {
	for i := n.accounts[account]; i != 0; {
		k := n.at(i)
		owed = owed || k.fullAt > now
		k.fullAt = 0
		i = k.nextOfAccount
	}
	return owed
}

// resetNetwork makes the Known buckets of all accounts in a network full. It reports
// whether one was not.
func (n *knownNetworks) resetNetwork(network key, now time.Duration) (owed bool) {
	for i := n.networks[network].first; i != 0; {
		k := n.at(i)
		owed = owed || k.fullAt > now
		k.fullAt = 0
		i = k.nextOfNetwork
	}
	return owed
}

// removeAccount removes all known networks of an account.
func (n *knownNetworks) removeAccount(account key) {
	for i := n.accounts[account]; i != 0; i = n.accounts[account] {
		n.remove(i)
	}
}
