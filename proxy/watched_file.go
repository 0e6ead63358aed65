package proxy

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A WatchedFile is a file that is read again when it changes, such as a table of accounts.
// The exported fields must not change once it is in use. It must not be copied.
type WatchedFile struct {
	Path string
	// Parse reads the open file and puts its content into use. It returns the number of
	// entries, for the log. After an error the content of before must stay in use.
	Parse func(*os.File, os.FileInfo) (entries int, err error)

	mu    sync.Mutex
	read  os.FileInfo // state of the file when it was read, or found to be invalid
	stale atomic.Pointer[error]
}

// Load reads the file.
func (f *WatchedFile) Load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.load()
	return err
}

// load is Load with f.mu held.
func (f *WatchedFile) load() (entries int, err error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	if f.read, err = file.Stat(); err != nil {
		return 0, err
	}
	return f.Parse(file, f.read)
}

// Watch looks at the file in intervals of every until ctx ends, and reads it again when it
// has changed and was the same in two looks: it may be written at the moment. A file that
// cannot be read, or has a mistake, changes nothing; that is logged once.
func (f *WatchedFile) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	look := time.NewTicker(every)
	defer look.Stop()
	f.mu.Lock()
	last := f.read
	f.mu.Unlock()
	var invalid error // of the content that was read last
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		now, err := os.Stat(f.Path)
		f.mu.Lock()
		switch {
		case err != nil:
			last = nil
			f.setStale(err, log)
		case !sameFile(now, last):
			last = now
		case sameFile(now, f.read):
			f.setStale(invalid, nil) // the file may have been away; invalid is logged already
		default:
			var entries int
			if entries, invalid = f.load(); invalid == nil {
				log.Info("file loaded", "file", f.Path, "entries", entries)
			}
			f.setStale(invalid, log)
		}
		f.mu.Unlock()
	}
}

// setStale keeps why the file is not loaded, and logs it once; log nil: not at all.
func (f *WatchedFile) setStale(err error, log *slog.Logger) {
	if err == nil {
		f.stale.Store(nil)
		return
	}
	if before := f.Stale(); log != nil && (before == nil || before.Error() != err.Error()) {
		log.Warn("file not loaded: its previous content stays in use", "file", f.Path, "err", err)
	}
	f.stale.Store(&err)
}

// Stale returns why Watch has not loaded the file as it is now; nil: it has.
func (f *WatchedFile) Stale() error {
	if err := f.stale.Load(); err != nil {
		return *err
	}
	return nil
}

// sameFile reports whether a and b describe the same content, as far as this is known
// without reading it. A mode may be a mistake, so it counts.
func sameFile(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}
