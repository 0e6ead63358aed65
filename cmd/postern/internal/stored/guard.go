package stored

import (
	"context"
	"errors"
	"fmt"

	"postern/proxy/guard"
)

// loadGuard returns the running guard, or a new one with the stored state of the guard.
func (m *Storage) loadGuard(ctx context.Context) (*guard.Guard, error) {
	if m.LiveGuard != nil {
		return m.LiveGuard, nil
	}
	g := guard.New(m.guardConfig)
	if err := g.Load(ctx, m.Guard); err != nil && !errors.Is(err, guard.ErrSnapshot) {
		return nil, err
	}
	return g, nil
}

// SeedGuard makes the networks of logins known-good.
var SeedGuard = Question[[]guard.Success, int]{"guard/seed", func(ctx context.Context, m *Storage, logins []guard.Success, each func(int) error) error {
	if m.Guard == nil {
		return errors.New("state.path is not set: the guard remembers nothing")
	}
	g := guard.New(m.guardConfig)
	if err := g.Load(ctx, m.Guard); err != nil && !errors.Is(err, guard.ErrSnapshot) {
		return err
	}
	n := g.Seed(logins)
	if err := g.Save(ctx, m.Guard); err != nil {
		return fmt.Errorf("store what the guard remembers: %w", err)
	}
	return each(n)
}}
