package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"syscall"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/listen"
)

// CheckOptions choose the steps of check after reading the configuration.
type CheckOptions struct {
	Probe    bool                          // connect to the backends
	User     string                        // with Probe: the user who is logged in at each protocol; "": none
	Password func() (*proxy.Secret, error) // returns the password of User
	Open     bool                          // open the addresses that are free
	CheckAs  func() error                  // checks again as another user, after all other steps
}

// Check writes a report of the configuration at path to out. The error has all mistakes
// of the configuration, and the ProbeErrors.
func Check(ctx context.Context, path string, o CheckOptions, out io.Writer) error {
	cfg, store, err := load(path)
	if err != nil {
		return err
	}
	g, err := build(cfg, New(cfg, store, slog.New(slog.DiscardHandler), nil))
	if err != nil {
		return err
	}
	warnings, mistakes := g.checkCertificates()
	errs := []error{g.checkPorts(), mistakes}
	if o.Probe {
		errs = append(errs, g.probe(ctx, out, o))
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
	warnings = append(warnings, g.warnings()...)
	warnings.Sort()
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
