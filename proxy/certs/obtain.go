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

// A Progress is the result for one name.
type Progress struct {
	Name      string
	Result    string
	Err       error // of ObtainedNot and ObtainSkipped
	Done, All int   // names
}

// A BatchOrder obtains certificates before clients ask for them, into the storage
// from which a Postern loads them on demand. Names in the storage are not ordered
// again, so it may be interrupted and run again at any time.
type BatchOrder struct {
	Names     []string
	PerHour   int            // orders, evenly spread
	Addresses []netip.Addr   // as OnDemand.Addresses: names that point elsewhere are skipped
	Report    func(Progress) // called for each name
}

// Run obtains the certificates by a, until all names were tried, ctx ends, or the
// CA accepts no more orders at present.
func (o *BatchOrder) Run(ctx context.Context, a ACME, log *slog.Logger) error {
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
		p.Result, p.Err = o.check(ctx, m, name)
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
		o.Report(p)
		if problem, ok := errors.AsType[acme.Problem](p.Err); ok && problem.Type == acme.ProblemTypeRateLimited {
			return fmt.Errorf("the CA accepts no more orders at present: begin again later: %w", p.Err)
		}
	}
	return nil
}

// check returns the result if none has to be ordered, else "".
func (o *BatchOrder) check(ctx context.Context, m *manager, name string) (result string, err error) {
	if m.stored(ctx, name) {
		return ObtainedBefore, nil
	}
	if err := m.pointsHere(ctx, name, o.Addresses); err != nil {
		return ObtainSkipped, err
	}
	return "", nil
}

func (o *BatchOrder) order(ctx context.Context, m *manager, name string) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
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
// in order. Names that match a *. line are not known and not returned.
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
