package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/state"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve, until SIGTERM or SIGINT",
		Args:  cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		before, err := predecessor()
		if err != nil {
			return err
		}
		err = runAt(cmd.Context(), *path, cmd.ErrOrStderr(), before)
		if err != nil && before != nil {
			before.explain(err)
		}
		return err
	}
	return cmd
}

// runAt serves what the configuration at path says. before is the process that
// this one replaces; nil: none.
func runAt(ctx context.Context, path string, log io.Writer, before *relative) (err error) {
	cfg, store, err := load(path)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	s := newSite(store, newLog(log, cfg.Log.Format, level), level)
	s.path = path
	h, err := build(cfg, s)
	if err != nil {
		return err
	}
	if before != nil {
		if err := s.inherit(h, before); err != nil {
			return err
		}
	}
	if s.memory, err = openMemory(ctx, cfg); err != nil {
		return configs.Errors{cfg.Errorf("state.path", "%v", err)}
	}
	defer func() {
		if closed := s.memory.Close(); !errors.Is(closed, state.ErrDamaged) { // else the log has it
			err = errors.Join(err, closed)
		}
	}()
	if err := s.reportLost(ctx, cfg); err != nil {
		return configs.Errors{cfg.Errorf("state.path", "%v", err)}
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	return s.serve(ctx, h)
}

// load reads the configuration and its certificates.
func load(path string) (*configs.Config, *certs.Store, error) {
	cfg, err := configs.Load(path)
	if err != nil {
		return nil, nil, err
	}
	store, err := certs.New(sources(cfg))
	return cfg, store, err
}

func newLog(w io.Writer, format string, level *slog.LevelVar) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options))
	case "journald":
		return slog.New(newJournal(w, level))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// watch adds what reads a file again when it has changed.
func (h *house) watch(watch func(context.Context, time.Duration, *slog.Logger)) {
	h.background = append(h.background, func(ctx context.Context) { watch(ctx, watchEvery, h.log) })
}

// portOf returns the port that ln has got.
func portOf(ln net.Listener) int {
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}
