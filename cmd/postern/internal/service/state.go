package service

import (
	"context"
	"fmt"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics"
	"postern/proxy"
	"postern/proxy/state"
)

// reportLost logs that the cache was begun anew, and with it what the
// login guard knew, or that the record was lost. If the operator wants that, it
// is begun anew.
func (s *Service) reportLost(ctx context.Context, cfg *configs.Config) error {
	a := s.Storage.Files
	if a == nil {
		return nil
	}
	if a.Unidentified != nil {
		s.log.Warn("it is not known whether the record of unique ids is the one that it was", "err", a.Unidentified)
	}
	if err := a.Cache.Recreated(); err != nil {
		s.log.Warn("state was damaged and is begun anew: the login guard knows nobody, POP3 logins take longer",
			"file", stored.CacheFile, "kept", stored.CacheFile+".damaged", "err", err)
	}
	n := a.Lost.Load()
	if n == 0 {
		return nil
	}
	recompute := cfg.POP3.OnUnreadableRecord == "recompute"
	s.log.Error("the record of unique ids was lost", "file", stored.RecordFile, "accounts", n, "begun_anew", recompute, "remedy", stored.LostRemedy)
	if recompute {
		return a.Accept(ctx)
	}
	return nil
}

// logRecord logs that the record of several Posterns is temporarily not available, and, with
// nil, that it is available again.
func (s *Service) logRecord(err error) {
	if err != nil {
		s.log.Error("the shared record is not available: POP3 clients get a temporary refusal", "err", err)
		return
	}
	s.log.Info("the shared record is available")
}

// inPlaceEvery is how often the files are looked for at their paths, also when nobody writes.
const inPlaceEvery = 20 * time.Second

// reportBroken logs once of each file that it is broken, until ctx ends.
func (s *Service) reportBroken(ctx context.Context) {
	a := s.Storage.Files
	if a == nil {
		return
	}
	record, cache := a.Record.Broken(), a.Cache.Broken()
	look := time.NewTicker(inPlaceEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			_, _ = a.Record.CheckInPlace(), a.Cache.CheckInPlace() // they break a file, which is reported below
		case <-record:
			record = nil
			s.log.Error("state is broken: POP3 clients get a temporary refusal", "file", stored.RecordFile, "err", a.Record.Err())
		case <-cache:
			cache = nil
			s.log.Error("state is broken: POP3 logins take longer", "file", stored.CacheFile, "err", a.Cache.Err())
		case <-ctx.Done():
			return
		}
	}
}

// untilBroken returns work that also ends when the file that it writes is broken:
// otherwise work would log that error for ever.
func (s *Service) untilBroken(file func(*stored.Files) *state.Bolt, work func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		if a := s.Storage.Files; a != nil {
			whole, stop := context.WithCancel(ctx)
			defer stop()
			go func() {
				defer stop()
				select {
				case <-file(a).Broken():
				case <-whole.Done():
				}
			}()
			ctx = whole
		}
		work(ctx)
	}
}

func recordOf(a *stored.Files) *state.Bolt { return a.Record }

func cacheOf(a *stored.Files) *state.Bolt { return a.Cache }

// checkRecord returns an error if POP3 cannot be served with the record.
func (s *Service) checkRecord(g *generation) error {
	a := s.Storage.Opened.Load()
	if a == nil || a.Record.Err() == nil {
		return nil
	}
	for _, l := range g.cfg.Listeners {
		if l.Protocol == proxy.POP3 {
			return fmt.Errorf("%s is broken: POP3 clients get a temporary refusal", stored.RecordFile)
		}
	}
	return nil
}

// stateGauges returns the figures of the state's files for metrics.
func (s *Service) stateGauges() metrics.State {
	a := s.Storage.Opened.Load()
	if a == nil {
		return metrics.State{}
	}
	return metrics.State{
		Broken: map[string]bool{stored.RecordFile: a.Record.Err() != nil, stored.CacheFile: a.Cache.Err() != nil},
		Lost:   int(a.Lost.Load()),
	}
}

const (
	// firstRetirement is the time after a start until the first retirement: by then
	// many accounts have logged in.
	firstRetirement = time.Hour
	retireEvery     = 24 * time.Hour
)

// retireDaily removes, once a day until ctx ends, the data of accounts without a login for
// the configured retention.
func (s *Service) retireDaily(ctx context.Context) {
	next := time.NewTimer(firstRetirement)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			next.Reset(retireEvery)
		case <-ctx.Done():
			return
		}
		pop3, all, err := s.Storage.Retire(ctx, s.current.Load().cfg.Retention, time.Now())
		if err != nil && ctx.Err() == nil {
			s.log.Warn("accounts are not forgotten", "err", err)
		} else if len(pop3)+len(all) > 0 {
			s.log.Info("accounts forgotten that did not log in", "of_pop3", len(pop3), "of_ledger", len(all))
		}
	}
}
