package logs

import (
	"context"
	"log/slog"
)

// NewCounter returns a handler that passes all records to h, and calls count for each
// record.
func NewCounter(h slog.Handler, count func(slog.Level)) slog.Handler { return counter{h, count} }

// A counter is a slog.Handler that counts records.
type counter struct {
	slog.Handler
	count func(slog.Level)
}

// Handle implements slog.Handler.
func (c counter) Handle(ctx context.Context, r slog.Record) error {
	c.count(r.Level)
	return c.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (c counter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return counter{c.Handler.WithAttrs(attrs), c.count}
}

// WithGroup implements slog.Handler.
func (c counter) WithGroup(name string) slog.Handler {
	return counter{c.Handler.WithGroup(name), c.count}
}
