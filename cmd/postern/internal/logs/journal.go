package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A journal is a slog.Handler for systemd's journal: lines of text, each with its
// priority in front (sd-daemon(3)), and without a time, which the journal adds.
type journal [4]slog.Handler

func newJournal(w io.Writer, level slog.Leveler) journal {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if _, ok := a.Value.Any().(slog.Level); ok && len(groups) == 0 { // no other attribute is a slog.Level
			return slog.Attr{}
		}
		return a
	}}
	var j journal
	mu := new(sync.Mutex)
	for i, priority := range []string{"<7>", "<6>", "<4>", "<3>"} {
		j[i] = slog.NewTextHandler(&prefixed{mu, w, priority}, options)
	}
	return j
}

// readByJournal reports whether w is the file that stream names: systemd sets
// JOURNAL_STREAM to "device:inode" of the standard error that the journal reads
// (systemd.exec(5)). A child process inherits the variable, but may write elsewhere.
func readByJournal(w io.Writer, stream string) bool {
	file, ok := w.(*os.File)
	if !ok || stream == "" {
		return false
	}
	info, err := file.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// of returns the handler for a level.
func (j journal) of(level slog.Level) slog.Handler {
	switch {
	case level < slog.LevelInfo:
		return j[0]
	case level < slog.LevelWarn:
		return j[1]
	case level < slog.LevelError:
		return j[2]
	}
	return j[3]
}

// Enabled implements slog.Handler.
func (j journal) Enabled(ctx context.Context, level slog.Level) bool {
	return j.of(level).Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (j journal) Handle(ctx context.Context, r slog.Record) error {
	r.Time = time.Time{} // slog leaves a zero time out
	return j.of(r.Level).Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (j journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i := range j {
		j[i] = j[i].WithAttrs(attrs)
	}
	return j
}

// WithGroup implements slog.Handler.
func (j journal) WithGroup(name string) slog.Handler {
	for i := range j {
		j[i] = j[i].WithGroup(name)
	}
	return j
}

// ErrorWriter returns a writer for lines that are no log: w, or, if w leads to
// systemd's journal, a writer that gives each line the priority of an error.
func ErrorWriter(w io.Writer) io.Writer {
	if readByJournal(w, os.Getenv("JOURNAL_STREAM")) {
		return &prefixed{new(sync.Mutex), w, "<3>"}
	}
	return w
}

// A prefixed writes each line with a prefix, in one piece.
type prefixed struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
}

// Write implements io.Writer. lines is one whole line or several: what writes here writes
// nothing else.
func (p *prefixed) Write(lines []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var marked strings.Builder
	for line := range strings.Lines(string(lines)) {
		marked.WriteString(p.prefix + line)
	}
	if _, err := io.WriteString(p.w, marked.String()); err != nil {
		return 0, err
	}
	return len(lines), nil
}
