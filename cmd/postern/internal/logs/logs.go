// Package logs has the slog handlers of Postern: a line format for systemd's
// journal, the redaction of client addresses and account names, a counter of
// records by level, and the file of wrong passwords that fail2ban reads.
package logs

import (
	"io"
	"log/slog"
	"os"
)

// New returns a logger that writes to w in a format of log.format: text, json,
// journald, or auto, which is journald if w leads to systemd's journal, and text
// otherwise.
func New(w io.Writer, format string, level *slog.LevelVar) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "json":
		options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr { return inSeconds(a) }
		return slog.New(slog.NewJSONHandler(w, options))
	case "journald":
		return slog.New(newJournal(w, level))
	case "auto":
		if readByJournal(w, os.Getenv("JOURNAL_STREAM")) {
			return slog.New(newJournal(w, level))
		}
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// inSeconds returns a duration as a number of seconds under a key that says so, as
// Prometheus names its metrics: duration becomes duration_seconds. slog would write
// nanoseconds.
func inSeconds(a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.Float64(a.Key+"_seconds", a.Value.Duration().Seconds())
	}
	return a
}
