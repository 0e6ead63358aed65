package ledger

import (
	"context"
	"hash/maphash"
	"strings"
)

// maxKnown bounds the accounts and domains that a knownNames has. Each costs about 16
// octets.
const maxKnown = 1 << 20

// A knownNames has hashes of the accounts of a ledger, and of their domains, so that a
// lookup needs no file. Hashes instead of names need less memory.
type knownNames struct {
	seed   maphash.Seed
	hashes map[uint64]struct{}
}

func newKnownNames() knownNames {
	return knownNames{seed: maphash.MakeSeed(), hashes: make(map[uint64]struct{})}
}

// add adds an account and its domain.
func (k knownNames) add(account string) {
	if len(k.hashes) >= maxKnown {
		return
	}
	k.hashes[maphash.String(k.seed, account)] = struct{}{}
	if at := strings.LastIndexByte(account, '@'); at > 0 {
		k.hashes[maphash.String(k.seed, account[at:])] = struct{}{}
	}
}

func (k knownNames) has(name string) bool {
	_, ok := k.hashes[maphash.String(k.seed, name)]
	return ok
}

// Load reads which accounts the store has, for Known and KnownDomain. It takes about a
// microsecond for each entry. After an error only those of later logins are known.
func (l *Ledger) Load(ctx context.Context) error {
	all := newKnownNames()
	err := l.store.Scan(ctx, "", func(key string, _ []byte) error {
		account, _, _ := strings.Cut(key, "\x00")
		all.add(account)
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setKnown(all)
	return nil
}

// setKnown replaces the known names by all and those of logins that are not written.
func (l *Ledger) setKnown(all knownNames) {
	for who := range l.pending {
		all.add(who.account)
	}
	l.known = all
}

// Known reports whether an account has logged in before. It reads no file: it knows what
// Load and the hourly count have read, and the logins since. An account is not known if
// they could not read it, or if there are more than maxKnown.
func (l *Ledger) Known(account string) bool {
	return l.hasName(account) && !strings.HasPrefix(account, "@")
}

// KnownDomain reports whether an account of a domain has logged in before, as Known does.
func (l *Ledger) KnownDomain(domain string) bool { return l.hasName("@" + domain) }

func (l *Ledger) hasName(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known.has(name)
}

// Forget makes an account unknown until its next login.
func (l *Ledger) Forget(account string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known.hashes, maphash.String(l.known.seed, account))
}
