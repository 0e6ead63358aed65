package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/certs"
	"postern/proxy/listen"
)

// CheckOptions choose the steps of check after reading the configuration.
type CheckOptions struct {
	Probe    bool                          // connect to the backends
	User     string                        // with Probe: the user whose INBOX is opened; "": none
	Password func() (*proxy.Secret, error) // returns the password of User
	Open     bool                          // open the addresses that are free
	CheckAs  func() error                  // checks again as another user, after all other steps
}

// Check writes a report of the configuration at path to out. The error has all mistakes
// of the configuration.
func Check(ctx context.Context, path string, o CheckOptions, out io.Writer) error {
	cfg, store, err := load(path)
	if err != nil {
		return err
	}
	g, err := build(cfg, New(cfg, store, slog.New(slog.DiscardHandler), nil))
	if err != nil {
		return err
	}
	errs := []error{g.checkPorts()}
	if o.Probe {
		errs = append(errs, g.probe(ctx, out))
	}
	if o.User != "" {
		secret, err := o.Password()
		if err != nil {
			return err
		}
		defer secret.Clear()
		errs = append(errs, g.inspectINBOX(ctx, out, o.User, secret))
	}
	if o.Open {
		errs = append(errs, g.tryOpening(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := o.CheckAs(); err != nil {
		return err
	}
	for _, line := range g.explainChallenges() {
		_, _ = fmt.Fprintf(out, "%s: %s\n", path, line)
	}
	warnings := g.warnings()
	for _, w := range warnings {
		_, _ = fmt.Fprintln(out, w.Warning())
	}
	_, err = fmt.Fprintf(out, "%s is valid%s\n", path, countWarnings(len(warnings)))
	return err
}

// countWarnings returns what follows the word valid.
func countWarnings(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return ", with 1 warning"
	}
	return fmt.Sprintf(", with %d warnings", n)
}

// checkPorts returns an error that names the processes that listen on configured ports. A
// running Postern does not count: this may be its next configuration.
func (g *generation) checkPorts() error {
	var mistakes configs.Errors
	look := func(key, address string) {
		if pid, name, ok := listen.Holder(address); ok && name != "postern" {
			mistakes = append(mistakes, g.cfg.Errorf(key, "%s is held by %s (process %d)", address, name, pid))
		}
	}
	for key, address := range g.ports() {
		look(key, address)
	}
	if mistakes == nil {
		return nil
	}
	return mistakes
}

// ports yields the keys and addresses of all listeners of the configuration.
func (g *generation) ports() iter.Seq2[string, string] {
	return func(yield func(key, address string) bool) {
		for _, d := range g.listeners {
			if !yield(d.key, d.address) {
				return
			}
		}
		if a := g.cfg.TLS.ACME; a != nil && a.HTTPAddress != "" && !yield("tls.acme.http_address", a.HTTPAddress) {
			return
		}
		if address := g.cfg.Metrics.Address; address != "" {
			yield("metrics.address", address)
		}
	}
}

// tryOpening opens the addresses that are free, and closes them at once.
func (g *generation) tryOpening(ctx context.Context) error {
	var mistakes configs.Errors
	for key, address := range g.ports() {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue // checkPorts names the process
		}
		if err != nil {
			mistakes = append(mistakes, g.cfg.Errorf(key, "%v", err))
			continue
		}
		_ = ln.Close()
	}
	if a := g.cfg.TLS.ACME; a != nil {
		if err := certs.CheckStorage(a.Storage, os.Geteuid()); err != nil {
			mistakes = append(mistakes, g.cfg.Errorf("tls.acme.storage", "%v", err))
		}
	}
	if mistakes == nil {
		return nil
	}
	return mistakes
}

// probe connects to each server behind and reports its properties.
func (g *generation) probe(ctx context.Context, out io.Writer) error {
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
		for _, s := range g.pools[key].Members {
			begun := time.Now()
			report, err := s.Probe(ctx)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			describe(out, s, report, time.Since(begun))
		}
	}
	return errors.Join(errs...)
}

func describe(out io.Writer, s *backend.Server, r backend.Report, took time.Duration) {
	version := "no TLS"
	if r.TLS != 0 {
		version = tls.VersionName(r.TLS)
	}
	_, _ = fmt.Fprintf(out, "backend %s, %s at %s: %s, answered in %v\n  greeting:     %s\n  kind:         %s\n  capabilities: %s\n  mechanisms:   %s\n",
		s.Name, s.Protocol, s.Address, version, took.Round(time.Millisecond),
		r.Greeting, kindOf(s, r), strings.Join(r.Capabilities, ", "), strings.Join(r.Mechanisms, " "))
	_, _ = io.WriteString(out, advise(s.Protocol, r.Greeting, s.Address))
	_, _ = io.WriteString(out, adviseTokens(r))
}

// kindOf returns the kind by which Postern interprets the server's answers to passwords,
// with a note if the kind is a guess.
func kindOf(s *backend.Server, r backend.Report) string {
	switch {
	case s.Kind != backend.Guessed:
		return s.Kind.String()
	case r.Kind == backend.Other:
		return fmt.Sprintf("not known (backends.%s.%s.kind says what it is)", s.Name, s.Protocol)
	}
	return r.Kind.String() + " (guessed)"
}
