package guard

import "net/netip"

// Unlock makes all buckets of an account, as rewritten, full, in all networks. The
// backend checks passwords of the account again that were wrong before. The buckets of
// the networks themselves stay as they are. Unlock reports whether a bucket was not full.
func (g *Guard) Unlock(account string) bool {
	g.lock()
	defer g.mu.Unlock()
	return g.unlock(g.secret.account(account))
}

func (g *Guard) unlock(account key) (unlocked bool) {
	unlocked = g.buckets.removeMatching(g.now, func(b *bucket) bool { return b.account == uint32(account) })
	for _, pool := range g.buckets.pools {
		unlocked = g.buckets.evicted.fullAt(account^pool) > g.now || unlocked
		g.buckets.evicted.reset(account ^ pool)
	}
	unlocked = g.known.resetAccount(account, g.now) || unlocked
	for k, at := range g.unlocked {
		if g.now-at > answerFor {
			delete(g.unlocked, k)
		}
	}
	g.unlocked[account] = g.now
	g.refused.removeMatching(func(e *refusedEntry) bool { return e.account == account })
	return unlocked
}

// UnlockNetwork makes the buckets of the network of addr, and of its wider networks,
// full, and those of accounts for this network. It reports whether one was not full.
func (g *Guard) UnlockNetwork(addr netip.Addr) (unlocked bool) {
	g.lock()
	defer g.mu.Unlock()
	from := g.secret.originOf(addr)
	salts := &g.buckets.salts
	unlocked = g.buckets.removeMatching(g.now, func(b *bucket) bool { return b.network == uint32(from.network) })
	for _, k := range []key{
		from.network ^ salts[Network], from.network ^ salts[OAuth], from.wider[0] ^ salts[Network24],
		from.wider[0] ^ salts[Network56], from.wider[1] ^ salts[Network48],
	} {
		unlocked = g.buckets.fullAt(k, Network) > g.now || unlocked
		g.buckets.reset(k)
	}
	unlocked = g.known.resetNetwork(from.network, g.now) || unlocked
	g.refused.removeMatching(func(e *refusedEntry) bool { return e.network == from.network })
	return unlocked
}

// Forget unlocks an account, as rewritten, and removes its known networks. The hashes of
// its wrong passwords, which are stored by account and area, expire within a day.
func (g *Guard) Forget(account string) {
	g.lock()
	defer g.mu.Unlock()
	a := g.secret.account(account)
	g.unlock(a)
	g.known.removeAccount(a)
	delete(g.unlocked, a)
}
