package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

// Outcome is the answer to a reload or an upgrade.
type Outcome struct {
	Mistakes configs.Errors `json:"mistakes,omitempty"` // not nil: nothing has changed
}

// LogValue implements slog.LogValuer.
func (o Outcome) LogValue() slog.Value {
	if o.Mistakes == nil {
		return slog.GroupValue()
	}
	return slog.GroupValue(slog.Int("mistakes", len(o.Mistakes)))
}

// onRequest returns the answer of the control socket that makes a change.
func (s *Service) onRequest(do func(context.Context) error) func(context.Context, struct{}) (Outcome, error) {
	return func(ctx context.Context, _ struct{}) (answer Outcome, err error) {
		done := make(chan error, 1)
		select {
		case s.changes <- changeRequest{do, done}:
		case <-ctx.Done():
			return answer, context.Cause(ctx)
		}
		err = <-done
		if mistakes, ok := errors.AsType[configs.Errors](err); ok {
			return Outcome{mistakes}, nil
		}
		return answer, err
	}
}

// reload reads the configuration again and applies it. After an error nothing has changed.
func (s *Service) reload(ctx context.Context) error {
	notify(s.log, reloading)
	defer notify(s.log, ready)
	before := s.current.Load().cfg
	err := s.replace(ctx)
	s.metrics.Reloaded(err == nil)
	s.recordReload(before, err)
	if err != nil {
		s.log.Error("configuration not loaded: the one before is still served", "err", err)
		return err
	}
	s.log.Info("configuration loaded")
	return nil
}

func (s *Service) replace(ctx context.Context) error {
	if s.path == "" {
		return errors.New("there is no configuration file to read again")
	}
	cfg, err := configs.Load(s.path)
	if err != nil {
		return err
	}
	if err := s.checkRestartOnly(cfg); err != nil {
		return err
	}
	g, err := build(cfg, s)
	if err != nil {
		return err
	}
	if err := s.store.Configure(CertificateSources(cfg)); err != nil {
		return configs.Errors{cfg.Errorf("tls.certificates", "%v", err)}
	}
	if err := s.apply(ctx, g); err != nil {
		if undone := s.store.Configure(CertificateSources(s.current.Load().cfg)); undone != nil { // it was good, but its files may have changed
			s.log.Error("certificates are those of the configuration that was not loaded: mend these, and reload", "err", undone)
		}
		return err
	}
	s.guard.Reload(stored.GuardConfig(cfg))
	g.logWarnings()
	return nil
}

// A restartKey is a key of the configuration that a reload cannot change. value returns
// its value in a form for people.
type restartKey struct {
	key   string
	value func(*configs.Config) string
}

// restartKeys returns all keys that need a restart. All others take effect at a reload.
func restartKeys() []restartKey {
	return []restartKey{
		{"state.path", func(c *configs.Config) string { return c.State.Path }},
		{"state.record", recordKey},
		{"cluster.serve_record", func(c *configs.Config) string { return c.Cluster.ServeRecord }},
		{"control.socket", func(c *configs.Config) string { return c.Control.Socket }},
		{"control.group", func(c *configs.Config) string { return c.Control.Group }},
		{"log.format", func(c *configs.Config) string { return c.Log.Format }},
		{"log.fail2ban", func(c *configs.Config) string { return c.Log.Fail2ban }},
		{"limits.guard_entries", func(c *configs.Config) string { return strconv.Itoa(c.Limits.GuardEntries) }},
		{"limits.known_networks", func(c *configs.Config) string { return strconv.Itoa(c.Limits.KnownNetworks) }},
	}
}

// recordKey returns where the record of c is, which a reload cannot change.
func recordKey(c *configs.Config) string {
	r := c.State.Record
	switch {
	case r == nil:
		return ""
	case r.Postgres != nil:
		return fmt.Sprintf("postgres %s, password_file %q, ca %q", r.Postgres.URL, r.Postgres.PasswordFile, r.Postgres.CA)
	}
	return "owner " + r.Owner
}

// checkRestartOnly returns an error for changes in cfg that need a restart.
func (s *Service) checkRestartOnly(cfg *configs.Config) error {
	now := s.current.Load().cfg
	var mistakes configs.Errors
	for _, k := range restartKeys() {
		before, after := k.value(now), k.value(cfg)
		byDefault := k.key == "control.socket" && !cfg.IsSet(k.key) && cfg.State.Path != now.State.Path // it follows state.path
		if before != after && !byDefault {
			mistakes = append(mistakes, cfg.Errorf(k.key, "a change from %s to %s needs a restart: restart Postern, or undo the change",
				cmp.Or(before, "off"), cmp.Or(after, "off")))
		}
	}
	if learning := cfg.Guard.Learning; learning > now.Guard.Learning {
		mistakes = append(mistakes, cfg.Errorf("guard.learning", "a change from %s to %s needs a restart, because learning begins with a start: restart Postern, or undo the change",
			now.Guard.Learning, learning))
	}
	if mistakes == nil {
		return nil
	}
	mistakes.Sort()
	return mistakes
}

// A Reload is the result of reading the configuration again.
type Reload struct {
	At      time.Time `json:"at"`
	Changed []string  `json:"changed"`         // sections of the configuration that have changed; with Error none has
	Error   string    `json:"error,omitempty"` // empty: the configuration was loaded
}

// recordReload keeps the result of a reload for the command status. before is the
// configuration up to the reload.
func (s *Service) recordReload(before *configs.Config, err error) {
	r := &Reload{At: time.Now(), Changed: []string{}}
	if err != nil {
		r.Error = err.Error()
	} else {
		r.Changed = append(r.Changed, changedSections(before, s.current.Load().cfg)...)
	}
	s.lastReload.Store(r)
}

// changedSections returns the keys at the top of the configuration whose values differ.
func changedSections(before, after *configs.Config) (changed []string) {
	b, a := reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem()
	for i := range b.NumField() {
		field := b.Type().Field(i)
		if !field.IsExported() || reflect.DeepEqual(b.Field(i).Interface(), a.Field(i).Interface()) {
			continue
		}
		changed = append(changed, strings.Split(field.Tag.Get("yaml"), ",")[0])
	}
	return changed
}
