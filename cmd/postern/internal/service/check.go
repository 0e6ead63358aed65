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
	for _, hint := range append(g.hints(), g.challengeHints()...) {
		_, _ = fmt.Fprintf(out, "%s: %s\n", path, hint)
	}
	_, err = fmt.Fprintf(out, "%s is good\n", path)
	return err
}

// hints returns notes about settings that are valid, but may not be intended.
func (g *generation) hints() (all []string) {
	for _, l := range g.cfg.Listeners {
		if l.TLS != "refuse" && l.TLSProfile == proxy.Legacy.String() {
			all = append(all, oldTLS(l))
		}
	}
	if needed, allowed := g.descriptors(); needed > allowed {
		all = append(all, fmt.Sprintf("limits.max_connections %d needs %d file descriptors, two for each, and %d are allowed here (RLIMIT_NOFILE; "+
			"for the service it is LimitNOFILE in the unit): raise that, or lower this", g.cfg.Limits.MaxConnections, needed, allowed))
	}
	pop3 := slices.ContainsFunc(g.cfg.Listeners, func(l configs.Listener) bool { return l.Protocol == "pop3" && l.TLS != "refuse" })
	if !pop3 {
		return all
	}
	if !g.cfg.IsSet("pop3.uidl") {
		all = append(all, "pop3.uidl is the default, dovecot: unless the old POP3 server used it, clients will fetch all their mail again; `postern uidl detect` finds out")
	}
	if g.cfg.State.Path == "" {
		all = append(all, "state.path is not set: POP3 lists each mailbox anew, and unique ids do not outlive a change of UIDVALIDITY")
	}
	return all
}

// oldTLS returns a line about the TLS versions and clients of the profile legacy.
func oldTLS(l configs.Listener) string {
	clients := "all clients"
	if l.Networks != nil {
		clients = strings.Trim(fmt.Sprint(l.Networks), "[]")
	}
	return fmt.Sprintf("the listener %s takes TLS 1.0, 3DES and keys without forward secrecy from %s (tls_profile: legacy); "+
		"the metric postern_tls_profile_needed_total says whether anybody still needs it", l.Name, clients)
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
