package service

import (
	"context"
	"sync/atomic"

	"postern/cmd/postern/internal/logs"
	"postern/metrics"
	"postern/metrics/ledger"
	"postern/metrics/page"
	"postern/proxy"
)

// openLedger opens the ledger of logins, unless the state has no files, and sets the
// pseudonyms of accounts.
func (s *Service) openLedger(ctx context.Context) {
	if s.Storage.Files == nil {
		s.pseudonyms = logs.NewPseudonyms(nil)
		return
	}
	key, err := s.Storage.Files.PseudonymKey(ctx)
	if err != nil {
		s.log.Warn("accounts have other pseudonyms in the log than before", "err", err)
	}
	s.pseudonyms = logs.NewPseudonyms(key)
	l := ledger.New(s.Storage.Ledger(), s.log, nil)
	l.KnownElsewhere, l.Off, l.Days = s.known, s.pop3Off, s.Storage.Days()
	if err := l.Load(ctx); err != nil {
		s.log.Warn("the log has hashes in place of accounts that have not logged in since the start", "err", err)
	}
	s.ledger.Store(l)
	s.Storage.Forgotten = s.forget
	s.Storage.Flush, s.Storage.LiveGuard = l.Write, s.guard
	s.writers = append(s.writers, s.untilBroken(recordOf, l.Run), s.retireDaily, s.reportBroken)
}

// accountGauges returns the figures of the ledger for metrics.
func (s *Service) accountGauges() metrics.Accounts {
	l := s.ledger.Load()
	if l == nil {
		return metrics.Accounts{}
	}
	c := l.Counts()
	return metrics.Accounts{Protocols: c.Protocols, TLS: c.TLS, Habits: c.Habits, Plaintext: c.Plaintext, Stages: c.Stages}
}

// accountsOnPage returns the figures of the ledger for the status page.
func (s *Service) accountsOnPage() (all []page.Accounts) {
	l := s.ledger.Load()
	if l == nil {
		return nil
	}
	c := l.Counts()
	if c.Since.IsZero() {
		return nil
	}
	for _, protocol := range proxy.Protocols() {
		a := page.Accounts{Protocol: protocol, All: c.Protocols[protocol], Refused: c.Plaintext[protocol]}
		for i, version := range []string{"1.3", "1.2", "1.1", "1.0"} {
			a.TLS[i] = c.TLS[[2]string{protocol, version}]
		}
		if protocol == proxy.POP3 && a.All > 0 {
			for _, habit := range ledger.Habits() {
				if n := c.Habits[habit]; n > 0 {
					a.Habits = append(a.Habits, page.Habit{Words: ledger.HabitWords(habit), Accounts: n})
				}
			}
		}
		all = append(all, a)
	}
	return all
}

// stagesOnPage returns the stages of each observed day for the status page.
func (s *Service) stagesOnPage() (all []page.Stages) {
	l := s.ledger.Load()
	if l == nil {
		return nil
	}
	for _, o := range l.History() {
		all = append(all, page.Stages{Day: o.Day, Accounts: o.Stages})
	}
	return all
}

// A ledgerObserver passes events to a ledger, which is set after the state is open.
type ledgerObserver struct{ atomic.Pointer[ledger.Ledger] }

// Observe implements proxy.Observer.
func (k *ledgerObserver) Observe(e proxy.Event) {
	if l := k.Load(); l != nil {
		l.Observe(e)
	}
}
