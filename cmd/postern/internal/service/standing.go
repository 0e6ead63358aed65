package service

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"postern/proxy"
)

const (
	standsFor     = 30 * time.Second // for which a login that stands is not looked at again
	mostStanding  = 1 << 16          // logins that are remembered
	standingEvery = time.Minute      // between two looks at the devices of open sessions
)

// standing remembers which logins stood a moment ago. The zero value is ready.
type standing struct {
	mu     sync.Mutex
	until  map[standingKey]time.Time
	pruned time.Time // when those that are over were last removed
}

// A standingKey is what may end a login.
type standingKey struct {
	account, device, protocol string
	addr                      netip.Addr
}

// check returns nil if l stands: check says so, or has said so within standsFor. A refusal
// is not remembered: it may be temporary.
func (s *standing) check(l *proxy.Login, check func() error) error {
	key := standingKey{l.Account, l.Device, l.Client.Protocol, l.Client.Addr.Addr()}
	now := time.Now()
	s.mu.Lock()
	stands := now.Before(s.until[key])
	s.mu.Unlock()
	if stands {
		return nil
	}
	if err := check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.until) >= mostStanding && now.Sub(s.pruned) >= standsFor {
		s.pruned = now
		for k, until := range s.until {
			if !now.Before(until) {
				delete(s.until, k)
			}
		}
	}
	if s.until == nil {
		s.until = map[standingKey]time.Time{}
	}
	if len(s.until) < mostStanding {
		s.until[key] = now.Add(standsFor)
	}
	return nil
}

// stands returns nil if a login whose password Postern has checked may connect to its
// backend, for the first time or again, by the configuration and the files of now: its
// device was not removed and has not expired, passwords.file has the account still, if
// nothing else knows it, and the protocol is not off for it. What cannot be read refuses
// the login temporarily.
func (s *Service) stands(ctx context.Context, l *proxy.Login) error {
	if !l.Verified {
		return nil
	}
	return s.standing.check(l, func() error {
		g := s.current.Load()
		if g == nil { // postern provider check, which serves nobody
			return nil
		}
		if err := g.withPasswords(nil, nil).Stands(ctx, l); err != nil {
			return err
		}
		if p := g.passwords; l.Device == "" && p.file != nil && g.cfg.Passwords.Backend == "" && !p.file.Known(l.Account) {
			return &proxy.Refusal{Reason: proxy.Suspended, Verified: true, Err: errNotInFile}
		}
		if g.routing.policy != nil {
			return g.routing.policy.Refusal(l.Account, l.Client.Protocol)
		}
		return nil
	})
}

var errNotInFile = errors.New("passwords.file has the account no more")

// watchDevices ends the sessions of devices that have expired meanwhile, or were removed by
// another Postern with the same record, until ctx ends.
func (s *Service) watchDevices(ctx context.Context) {
	look := time.NewTicker(standingEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			s.endRemoved(ctx, func(l *proxy.Login) error { return s.current.Load().withPasswords(nil, nil).Stands(ctx, l) })
		}
	}
}

// endRemoved ends the sessions of the devices that do not stand. A device of which that
// cannot be read stands; after mostAway of them in a row the others are not asked about.
func (s *Service) endRemoved(ctx context.Context, stands func(*proxy.Login) error) {
	type device struct{ account, id string }
	const mostAway = 3
	seen, away := map[device]bool{}, 0
	for _, i := range s.server.Sessions() {
		d := device{i.Account, i.Device}
		if d.id == "" || d.account == "" || seen[d] {
			continue
		}
		if seen[d] = true; away == mostAway {
			return
		}
		err := stands(&proxy.Login{Account: i.Account, Device: i.Device, Client: i.Client})
		reason := proxy.ReasonOf(err)
		if away++; reason != proxy.Unavailable {
			away = 0
		}
		if ctx.Err() != nil || reason != proxy.Wrong && reason != proxy.Suspended {
			continue
		}
		n := s.server.KickAfterMessage(messageTime, SessionFilter{Account: d.account, Device: d.id}.matches)
		s.log.Info("the sessions of a device end", "account", d.account, "device", d.id, "sessions", n, "err", err)
	}
}
