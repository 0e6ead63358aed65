package logs

import (
	"os"
	"sync"
	"time"
)

// A FailureFile is a file with a line for each wrong password. A program that rotates logs
// may move the file away: a FailureFile opens a new file within a second.
type FailureFile struct {
	path string

	mu      sync.Mutex
	file    *os.File
	checked time.Time // time of the last check that the file is still at its path
}

// OpenFailures opens the file at path, and creates a missing one.
func OpenFailures(path string) (*FailureFile, error) {
	l := &FailureFile{path: path}
	return l, l.open()
}

func (l *FailureFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.checked = file, time.Now()
	return nil
}

// Write implements io.Writer.
func (l *FailureFile) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.checked) >= time.Second {
		if err := l.reopenIfMoved(); err != nil {
			return 0, err
		}
	}
	return l.file.Write(line)
}

func (l *FailureFile) reopenIfMoved() error {
	own, err := l.file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(l.path); err == nil && os.SameFile(own, now) {
		l.checked = time.Now()
		return nil
	}
	return l.open()
}
