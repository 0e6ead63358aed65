package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"syscall"
	"time"

	"postern/cmd/postern/internal/unit"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/listen"
)

// CheckOptions choose the steps of check after reading the configuration.
type CheckOptions struct {
	Probe    bool                          // connect to the backends
	User     string                        // with Probe: the user who is logged in at each protocol; "": none
	Password func() (*proxy.Secret, error) // returns the password of User
	Open     bool                          // open the addresses that are free
	Unit     *unit.Unit                    // under which the service runs; nil: not known
	CheckAs  func() (*Report, error)       // checks again as another user, after all other steps; nil: there is none
}

// A Report is what check has found.
type Report struct {
	File     string         `json:"file"`
	Valid    bool           `json:"valid"`
	User     string         `json:"user,omitempty"`     // as which the files were tried; "": the user of the command
	Unit     string         `json:"unit,omitempty"`     // the unit of systemd by which they were judged; "": none
	Writable []string       `json:"writable,omitempty"` // with Unit: where the service can write
	Mistakes configs.Errors `json:"mistakes,omitempty"`
	Warnings configs.Errors `json:"warnings,omitempty"`
	Probes   []string       `json:"probes,omitempty"` // why backends cannot be used
	Errors   []string       `json:"errors,omitempty"` // all others
}

// Check returns a report of the configuration at path. Lines about what is right go to out.
func Check(ctx context.Context, path string, o CheckOptions, out io.Writer) *Report {
	r := &Report{File: path}
	if o.Unit != nil {
		r.Unit, r.Writable = o.Unit.Path, o.Unit.Writable()
	}
	g := r.try(ctx, o, out)
	other, err := o.CheckAs()
	switch {
	case err != nil:
		r.fail(err)
	case other != nil:
		r.add(other)
	case g != nil:
		mistakes, warnings := g.checkPaths(o.Unit)
		r.Mistakes = append(r.Mistakes, mistakes...)
		r.Warnings = append(append(r.Warnings, warnings...), g.warnings(o.Unit)...)
	}
	r.Mistakes.Sort()
	r.Warnings.Sort()
	r.Valid = r.Mistakes == nil && r.Errors == nil && r.Probes == nil
	if r.Valid {
		for _, line := range append(g.explainChallenges(), g.explainPolicy(time.Now())...) {
			_, _ = fmt.Fprintf(out, "%s: %s\n", path, line)
		}
	}
	return r
}

// try adds to r what is wrong for the present user. It returns nil if no generation can be
// built.
func (r *Report) try(ctx context.Context, o CheckOptions, out io.Writer) *generation {
	cfg, store, err := load(r.File)
	if err != nil {
		r.fail(err)
		return nil
	}
	g, err := build(cfg, New(cfg, store, slog.New(slog.DiscardHandler), nil))
	if err != nil {
		r.fail(err)
		return nil
	}
	warnings, wrong := g.checkCertificates()
	r.Warnings = append(warnings, g.checkRecordStore(ctx, out)...)
	errs := []error{g.checkPorts(), wrong}
	if o.Probe {
		errs = append(errs, g.probe(ctx, out, o))
	}
	if o.Open {
		errs = append(errs, g.tryOpening(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		r.fail(err)
	}
	return g
}

// add adds what a check as another user has found: the user of the service. Of a key both
// may say the same in other words; root sees more of it, such as whose a port is.
func (r *Report) add(other *Report) {
	r.User, r.Unit, r.Writable, r.Warnings = other.User, other.Unit, other.Writable, other.Warnings
	own := slices.Clone(r.Mistakes)
	for _, m := range other.Mistakes {
		m.File = r.File
		if !slices.ContainsFunc(own, func(o configs.Error) bool { return o.Line == m.Line && o.Key == m.Key }) {
			r.Mistakes = append(r.Mistakes, m)
		}
	}
	for _, e := range other.Errors {
		if !slices.Contains(r.Errors, e) {
			r.Errors = append(r.Errors, e)
		}
	}
}

// fail adds err to r.
func (r *Report) fail(err error) *Report {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			r.fail(one)
		}
		return r
	}
	probes, probed := errors.AsType[ProbeErrors](err)
	mistakes, mistaken := errors.AsType[configs.Errors](err)
	switch {
	case probed:
		for _, e := range probes {
			r.Probes = append(r.Probes, e.Error())
		}
	case mistaken:
		r.Mistakes = append(r.Mistakes, mistakes...)
	default:
		r.Errors = append(r.Errors, err.Error())
	}
	return r
}

// Verdict returns the last line of a report that has no mistakes.
func (r *Report) Verdict() string {
	verdict := r.File + " is valid"
	switch n := len(r.Warnings); n {
	case 0:
	case 1:
		verdict += ", with 1 warning"
	default:
		verdict += fmt.Sprintf(", with %d warnings", n)
	}
	return verdict
}

// checkPorts returns an error that names the processes that listen on configured ports. A
// running Postern does not count, whatever its binary is called: this may be its next
// configuration.
func (g *generation) checkPorts() error {
	running, known := 0, false
	if g.cfg.Control.Socket != "" {
		running, known = admin.Running(g.cfg.Control.Socket)
	}
	own := func(pid int, name string) bool { return name == "postern" || known && pid == running }
	var mistakes configs.Errors
	for key, address := range g.ports() {
		if err := listen.Held(address, own); err != nil {
			mistakes = append(mistakes, g.cfg.Errorf(key, "%v", err))
		}
	}
	if mistakes == nil {
		return nil
	}
	return mistakes
}

// ports yields the keys and addresses at which a start listens.
func (g *generation) ports() iter.Seq2[string, string] {
	return func(yield func(key, address string) bool) {
		for _, d := range g.listeners {
			if !yield(d.key, d.address) {
				return
			}
		}
		for _, e := range g.endpoints() {
			if e.address != "" && !yield(e.key, e.address) {
				return
			}
		}
	}
}

// tryOpening opens the addresses that are free, and closes them at once.
func (g *generation) tryOpening(ctx context.Context) error {
	var mistakes configs.Errors
	for key, address := range g.ports() {
		if err := listen.Try(ctx, address); err != nil && !errors.Is(err, syscall.EADDRINUSE) { // checkPorts names the process
			mistakes = append(mistakes, g.cfg.Errorf(key, "%v", err))
		}
	}
	if mistakes == nil {
		return nil
	}
	return mistakes
}
