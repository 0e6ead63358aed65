package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/admin"
	"postern/proxy/guard"
)

// An ExplainQuestion is an attempt that the guard explains.
type ExplainQuestion struct {
	Account  string     `json:"account"` // as typed
	Addr     netip.Addr `json:"addr"`    // invalid: each network of the account that is remembered
	Listener string     `json:"listener"`
}

// LogValue implements slog.LogValuer.
func (q ExplainQuestion) LogValue() slog.Value {
	address := ""
	if q.Addr.IsValid() {
		address = q.Addr.String()
	}
	return admin.Arguments("account", q.Account, "ip", address)
}

// An unlockTarget is an account, as typed, an address or a network.
type unlockTarget string

// LogValue implements slog.LogValuer.
func (t unlockTarget) LogValue() slog.Value {
	if network, ok, _ := networkOf(string(t)); ok {
		return admin.Arguments("network", network.String())
	}
	return admin.Arguments("account", string(t))
}

// An Explained is a guard.Explanation, and the account as the log has it while it is not known.
type Explained struct {
	guard.Explanation // without Network: none is remembered
	AccountHash       string
	KnownNetworks     int // of the account: the guard has hashes of them, and no addresses
}

// An Unlocked is what guard/unlock has unlocked.
type Unlocked struct {
	Name string `json:"name"` // the account, or the network
	Done bool   `json:"done"` // false: nothing was locked
}

// answerGuard makes c answer the requests about the guard.
func (s *Service) answerGuard(c *admin.Server) {
	admin.HandleEach(c, "guard/explain", s.explain)
	admin.HandleEach(c, "guard/list", func(_ context.Context, _ struct{}, each func(guard.Refused) error) error {
		for _, r := range s.guard.List() {
			r.Hash = s.audit.HashOf(r.Hash).String() // as the log has it
			if err := each(r); err != nil {
				return err
			}
		}
		return nil
	})
	admin.Handle(c, "guard/unlock", func(_ context.Context, target unlockTarget) (Unlocked, error) {
		name := string(target)
		if network, ok, err := networkOf(name); err != nil {
			return Unlocked{}, err
		} else if ok {
			return Unlocked{network.String(), s.guard.UnlockNetwork(network.Addr())}, nil
		}
		account, err := s.account(name)
		if err != nil {
			return Unlocked{}, err
		}
		return Unlocked{account, s.guard.Unlock(account)}, nil
	})
	admin.Handle(c, stored.SeedGuard.Name, func(_ context.Context, logins []guard.Success) (int, error) {
		return s.guard.Seed(logins), nil
	})
}

// checkListener returns an error unless there is a listener with that name, or name is "".
func (s *Service) checkListener(name string) error {
	g := s.current.Load()
	if name == "" || g == nil || g.has(name) {
		return nil
	}
	var names []string
	for _, l := range g.cfg.Listeners {
		names = append(names, l.Name)
	}
	return errUnknown("listener", name, names)
}

// explain answers with what the guard would do with a login from q.Addr, or from each
// network of the account that is remembered.
func (s *Service) explain(_ context.Context, q ExplainQuestion, each func(Explained) error) error {
	if err := s.checkListener(q.Listener); err != nil {
		return err
	}
	account, err := s.account(q.Account)
	if err != nil {
		return err
	}
	e := Explained{AccountHash: s.audit.Hash(account).String(), KnownNetworks: s.guard.Known(account)}
	if q.Addr.IsValid() {
		e.Explanation = s.guard.Explain(q.Listener, account, q.Addr)
		return each(e)
	}
	networks := s.networksOf(account)
	for _, n := range networks {
		e.Explanation = s.guard.Explain(q.Listener, account, n.Addr())
		if err := each(e); err != nil {
			return err
		}
	}
	if len(networks) == 0 {
		e.Account = account
		return each(e)
	}
	return nil
}

// maxNetworksOf bounds the networks that an answer has of one account.
const maxNetworksOf = 64

// networksOf returns the networks that logins of an account came from, as far as they are
// remembered with their address.
func (s *Service) networksOf(account string) (all []netip.Prefix) {
	add := func(n netip.Prefix) {
		if n.IsValid() && !slices.Contains(all, n) && len(all) < maxNetworksOf {
			all = append(all, n)
		}
	}
	for _, i := range s.server.Sessions() {
		if i.Account == account {
			n, _, _ := networkOf(i.Client.Addr.Addr().String())
			add(n)
		}
	}
	for _, o := range slices.Backward(s.outcomes.Of(account)) { // the last ones first
		add(o.Network)
	}
	for _, r := range s.guard.List() {
		if r.Hash == s.guard.Hash(account) {
			add(r.Network)
		}
	}
	return all
}

// account returns the account for a login name.
func (s *Service) account(name string) (string, error) {
	g := s.current.Load()
	if g == nil {
		return "", errors.New("not serving yet")
	}
	return g.routing.accounts.Account(name)
}

// networkOf parses an address, or a network of the size that has a budget. If ok is false
// and err is nil, text is the name of an account.
func networkOf(text string) (network netip.Prefix, ok bool, err error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		if network, err = netip.ParsePrefix(text); err != nil {
			return network, false, nil // text is a name
		}
		addr = network.Addr()
	}
	addr = addr.Unmap().WithZone("")
	size := min(addr.BitLen(), 64) // all bits of IPv4, half of IPv6
	if network.IsValid() && network.Bits() < size {
		return network, false, fmt.Errorf("%s is more than one network: unlock those that list shows", network)
	}
	network, err = addr.Prefix(size)
	return network, err == nil, err
}
