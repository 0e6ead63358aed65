package certs

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns a logger for certmagic that writes to log. Certmagic's
// information messages are steps of its work, for debugging; results are logged
// from events.
func newZap(log *slog.Logger) *zap.Logger { return zap.New(zapHandler{log.Handler()}) }

// A zapHandler is a zapcore.Core that passes entries to a slog.Handler.
type zapHandler struct{ to slog.Handler }

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelWarn
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.Core. Certmagic's debug messages, several for each
// handshake, are dropped.
func (h zapHandler) Enabled(l zapcore.Level) bool {
	return l > zapcore.DebugLevel && h.to.Enabled(context.Background(), slogLevel(l))
}

// With implements zapcore.Core.
func (h zapHandler) With(fields []zapcore.Field) zapcore.Core {
	return zapHandler{h.to.WithAttrs(slogAttrs(fields))}
}

// Check implements zapcore.Core.
func (h zapHandler) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if h.Enabled(e.Level) {
		return checked.AddCore(e, h)
	}
	return checked
}

// Write implements zapcore.Core.
func (h zapHandler) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, slogLevel(e.Level), "acme: "+e.Message, 0)
	r.AddAttrs(slogAttrs(fields)...)
	return h.to.Handle(context.Background(), r)
}

// Sync implements zapcore.Core.
func (zapHandler) Sync() error { return nil }

func slogAttrs(fields []zapcore.Field) []slog.Attr {
	m := zapcore.NewMapObjectEncoder()
	var all []slog.Attr
	for _, f := range fields {
		f.AddTo(m)
	}
	for _, f := range fields { // in their order
		if v, ok := m.Fields[f.Key]; ok {
			all = append(all, slog.Any(f.Key, v))
		}
	}
	return all
}
