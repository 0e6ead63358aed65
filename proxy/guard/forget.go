package guard

// Known returns how many networks of an account, as rewritten, are known-good.
func (g *Guard) Known(account string) (n int) {
	g.lock()
	defer g.mu.Unlock()
	for p := g.regulars.accounts[g.secret.account(account)]; p != 0; p = g.regulars.at(p).ofAccount {
		n++
	}
	return n
}

// Forget forgets an account, as rewritten: its networks are new ones again, and
// it owes nothing. Hashes of wrong passwords, which stand by account and network
// together, go by themselves within a day.
func (g *Guard) Forget(account string) {
	g.Unlock(account)
	g.lock()
	defer g.mu.Unlock()
	a := g.secret.account(account)
	for p := g.regulars.accounts[a]; p != 0; p = g.regulars.accounts[a] {
		g.regulars.remove(p)
	}
	delete(g.unlocked, a)
}
