package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"postern/proxy"
)

// The values of Progress.Result.
const (
	ObtainedNow    = "obtained"
	ObtainedBefore = "there already"
	ObtainedNot    = "failed"
	ObtainSkipped  = "skipped" // the DNS points elsewhere
)

// A Progress is told for each name.
type Progress struct {
	Name      string
	Result    string
	Err       error // of ObtainedNot and ObtainSkipped
	Done, All int   // names
}

// An Obtaining gets certificates before clients ask for them, to the storage
// that a Postern loads them from on demand. What was got is not got again, so
// that it may be ended and begun anew at any time.
type Obtaining struct {
	Names     []string
	PerHour   int          // orders, spread evenly
	Addresses []netip.Addr // names whose DNS has others are skipped; none: nobody looks
	Tell      func(Progress)
}

// Run gets the certificates by a, until all names were tried, ctx ends, or the
// CA wants no more orders for now.
func (o *Obtaining) Run(ctx context.Context, a ACME, log *slog.Logger) error {
	a.Names, a.OnDemand = nil, nil
	m, err := newManager(a, log, proxy.Observers{})
	if err != nil {
		return err
	}
	defer m.cache.Stop()
	pace := time.NewTicker(time.Hour / time.Duration(o.PerHour))
	defer pace.Stop()
	ordered := false
	for i, name := range o.Names {
		p := Progress{Name: name, Done: i + 1, All: len(o.Names)}
		p.Result, p.Err = o.look(ctx, m, name)
		if p.Result == "" {
			if ordered && wait(ctx, pace.C) != nil {
				return ctx.Err()
			}
			ordered = true
			p.Result, p.Err = o.order(ctx, m, name)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		o.Tell(p)
		if problem, ok := errors.AsType[acme.Problem](p.Err); ok && problem.Type == acme.ProblemTypeRateLimited {
			return fmt.Errorf("the CA wants no more orders for now, begin again later: %w", p.Err)
		}
	}
	return nil
}

// look says what there is to know without the CA; nothing: an order is due.
func (o *Obtaining) look(ctx context.Context, m *manager, name string) (result string, err error) {
	if m.stored(ctx, name) {
		return ObtainedBefore, nil
	}
	if err := m.pointsHere(ctx, name, o.Addresses); err != nil {
		return ObtainSkipped, err
	}
	return "", nil
}

func (o *Obtaining) order(ctx context.Context, m *manager, name string) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, issueTime)
	defer cancel()
	if err := m.magic.ObtainCertSync(ctx, name); err != nil {
		return ObtainedNot, err
	}
	return ObtainedNow, nil
}

func wait(ctx context.Context, c <-chan time.Time) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ReadNames returns the names of the file at path, each also with the prefixes,
// in order. What *. stands for is not known, so these are not among them.
func ReadNames(path string, prefixes []string) ([]string, error) {
	list, err := readNames(path)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(list.exact)) {
		all = append(all, name)
		for _, prefix := range prefixes {
			all = append(all, prefix+"."+name)
		}
	}
	return all, nil
}
