package certs

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns a logger for certmagic that writes to log. What certmagic
// tells as information is a step of its work, of interest for debugging; what
// it has done is told by events.
func newZap(log *slog.Logger) *zap.Logger { return zap.New(zapHandler{log.Handler()}) }

// A zapHandler is a zapcore.Core that hands entries to a slog.Handler.
type zapHandler struct{ to slog.Handler }

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelWarn
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.Core. Certmagic's own debug messages, several for
// each handshake, are left out.
func (h zapHandler) Enabled(l zapcore.Level) bool {
	return l > zapcore.DebugLevel && h.to.Enabled(context.Background(), level(l))
}

// With implements zapcore.Core.
func (h zapHandler) With(fields []zapcore.Field) zapcore.Core {
	return zapHandler{h.to.WithAttrs(attrs(fields))}
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
	r := slog.NewRecord(e.Time, level(e.Level), "acme: "+e.Message, 0)
	r.AddAttrs(attrs(fields)...)
	return h.to.Handle(context.Background(), r)
}

// Sync implements zapcore.Core.
func (zapHandler) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
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
