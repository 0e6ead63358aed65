package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"postern/cmd/postern/internal/logs"
	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/state"
)

// A StartError is why a start has failed that would fail again: the configuration, or a file
// that it names, has to be put right first.
type StartError struct{ Err error }

// Error implements error.
func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *StartError) Unwrap() error { return e.Err }

// Run serves the configuration at path until ctx ends, or SIGTERM or SIGINT comes,
// and logs to log. before is the process that this one replaces; nil: none. Mistakes in the
// configuration are a *StartError.
func Run(ctx context.Context, path string, log io.Writer, before *Peer) (err error) {
	cfg, store, err := load(path)
	if err != nil {
		return &StartError{err}
	}
	level := new(slog.LevelVar)
	s := New(cfg, store, logs.New(log, cfg.Log.Format, level), level)
	s.path = path
	g, err := build(cfg, s)
	if err != nil {
		return &StartError{err}
	}
	if mistakes, _ := g.checkPaths(nil); mistakes != nil {
		mistakes.Sort()
		return &StartError{mistakes}
	}
	if before != nil {
		if err := s.inherit(g, before); err != nil {
			return err
		}
	}
	s.Storage.RecordAway = s.logRecord
	if err := s.Storage.Open(ctx, cfg); err != nil {
		return configs.Errors{cfg.Errorf("state.path", "%v", err)}
	}
	defer func() {
		if closed := s.Storage.Close(); !errors.Is(closed, state.ErrDamaged) { // the log has ErrDamaged already
			err = errors.Join(err, closed)
		}
	}()
	if err := s.reportLost(ctx, cfg); err != nil {
		return configs.Errors{cfg.Errorf("state.path", "%v", err)}
	}
	g.logWarnings()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	return s.serve(ctx, g)
}

// load reads the configuration and its certificates.
func load(path string) (*configs.Config, *certs.Store, error) {
	cfg, err := configs.Load(path)
	if err != nil {
		return nil, nil, err
	}
	store, err := certs.New(CertificateSources(cfg))
	return cfg, store, err
}
