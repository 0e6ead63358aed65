package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/listen"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve, until SIGTERM or SIGINT",
		Args:  cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		cfg, store, err := load(*path)
		if err != nil {
			return err
		}
		h, err := build(cfg, store, newLog(cmd.ErrOrStderr(), cfg.Log))
		if err != nil {
			return err
		}
		m, err := openMemory(cfg)
		if err != nil {
			return configs.Errors{cfg.Errorf("state.path", "%v", err)}
		}
		defer func() { err = errors.Join(err, m.Close()) }()
		h.remember(m)
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		return h.serve(ctx)
	}
	return cmd
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

// serve opens what the house listens at, and serves until ctx ends. Then it
// closes the listeners and gives the sessions their time. An error is one of
// opening: a stop, even with sessions left, is none.
func (h *house) serve(ctx context.Context) error {
	bindings, err := h.open(ctx)
	if err != nil {
		return err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	h.firstProbe(ctx)
	for _, work := range h.background {
		wg.Go(func() { work(background) })
	}
	if err := h.server.Apply(bindings); err != nil {
		return err
	}
	for _, b := range bindings {
		h.log.Info("listening", "service", b.Service.Name, "address", b.Addr().String())
	}
	h.opened.Store(true)
	h.ready(bindings)
	<-ctx.Done()
	h.drain(context.WithoutCancel(ctx))
	return nil
}

// firstProbe asks the servers behind what they offer, so that the first client
// hears it. One that does not answer soon holds nobody up.
func (h *house) firstProbe(ctx context.Context) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range h.pools {
		wg.Go(func() { p.Probe(ctx) }) // an observer tells
	}
	wg.Wait()
}

// open opens every listener, or none. The error names all that cannot be.
func (h *house) open(ctx context.Context) (bindings []proxy.Binding, err error) {
	var mistakes configs.Errors
	for _, d := range h.doors {
		ln, err := listen.TCP(ctx, d.address)
		if err != nil {
			mistakes = append(mistakes, h.cfg.Errorf(d.key, "%v", err))
			continue
		}
		if d.proxyFrom != nil {
			ln = listen.Proxied(ln, d.proxyFrom)
		}
		for _, service := range d.services {
			bindings = append(bindings, proxy.Binding{Listener: ln, Service: service})
		}
	}
	if address := h.cfg.Metrics.Address; address != "" {
		if h.watching, err = listen.TCP(ctx, address); err != nil {
			mistakes = append(mistakes, h.cfg.Errorf("metrics.address", "%v", err))
		}
	}
	if err := h.openChallenges(ctx); err != nil {
		mistakes = append(mistakes, h.cfg.Errorf("tls.acme.http_address", "%v", err))
	}
	if err := h.store.Open(h.log, h.observer); err != nil {
		mistakes = append(mistakes, h.cfg.Errorf("tls.acme", "%v", err))
	}
	if err := h.openControl(); err != nil {
		mistakes = append(mistakes, h.cfg.Errorf("control.socket", "%v", err))
	}
	if mistakes == nil {
		return bindings, nil
	}
	for _, b := range bindings {
		_ = b.Close()
	}
	for _, ln := range []net.Listener{h.watching, h.asking, h.challenges} {
		if ln != nil {
			_ = ln.Close()
		}
	}
	return nil, mistakes
}

// drain ends the service. What clients see of it is the server's.
func (h *house) drain(ctx context.Context) {
	h.draining.Store(true)
	grace := h.cfg.Timeouts.Shutdown
	h.log.Info("stopping: sessions may end by themselves", "grace", grace, "connections", len(h.server.Sessions()))
	ctx, cancel := context.WithTimeoutCause(ctx, grace, fmt.Errorf("the grace period of %v is over", grace))
	defer cancel()
	if err := h.server.Shutdown(ctx); err != nil {
		h.log.Warn("stopped", "err", err)
		return
	}
	h.log.Info("stopped")
}

func newLog(w interface{ Write([]byte) (int, error) }, c configs.Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
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
