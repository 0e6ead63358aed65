package main

import (
	"context"
	"log/slog"
)

// newCounted returns a handler that hands all on to h, and calls count for each
// record.
func newCounted(h slog.Handler, count func(slog.Level)) slog.Handler { return counted{h, count} }

// A counted is a slog.Handler that counts what is written.
type counted struct {
	slog.Handler
	count func(slog.Level)
}

// Handle implements slog.Handler.
func (c counted) Handle(ctx context.Context, r slog.Record) error {
	c.count(r.Level)
	return c.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (c counted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return counted{c.Handler.WithAttrs(attrs), c.count}
}

// WithGroup implements slog.Handler.
func (c counted) WithGroup(name string) slog.Handler {
	return counted{c.Handler.WithGroup(name), c.count}
}
