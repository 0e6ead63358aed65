package state

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// WriteTo writes the whole file as it is at one moment. Writes go on meanwhile.
// The result is a file for Open.
func (b *Bolt) WriteTo(w io.Writer) (n int64, err error) {
	ctx := context.Background()
	err = b.view(ctx, func(tx *bbolt.Tx) error {
		n, err = tx.WriteTo(checkedWriter{w, b})
		return err
	})
	if err == nil {
		err = b.verify(ctx)
	}
	if err != nil {
		return n, fmt.Errorf("copy state %s: %w", b.path, err)
	}
	return n, nil
}

// A checkedWriter fails when the Bolt is broken.
type checkedWriter struct {
	io.Writer
	bolt *Bolt
}

// Write implements io.Writer.
func (w checkedWriter) Write(p []byte) (int, error) {
	if err := w.bolt.Err(); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

// Check reads every value of the file, in order. An error wraps ErrDamaged.
// Writes go on meanwhile, and the file grows until Check is done.
//
// bbolt's own check cannot be used: it runs in a goroutine of its own, and an
// invalid page ends the process.
func (b *Bolt) Check(ctx context.Context) error {
	err := b.view(ctx, func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, in *bbolt.Bucket) error { return b.walk(ctx, name, in) })
	})
	if err == nil {
		err = b.verify(ctx)
	}
	if err != nil {
		return fmt.Errorf("state %s: %w", b.path, err)
	}
	return nil
}

// walk reads all of a bucket.
func (b *Bolt) walk(ctx context.Context, name []byte, in *bbolt.Bucket) error {
	var last, sum []byte
	cursor := in.Cursor()
	for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case b.Err() != nil:
			return b.Err()
		case last != nil && bytes.Compare(last, k) >= 0:
			return fmt.Errorf("%w: bucket %q is out of order", ErrDamaged, name)
		case len(v) > maxValue:
			return fmt.Errorf("%w: a value of %d octets in bucket %q", ErrDamaged, len(v), name)
		}
		last, sum = append(last[:0], k...), append(sum[:0], v...)
	}
	return nil
}

// Restore replaces the file at path, which no process may have open, by the
// output of WriteTo. Invalid input is refused before anything changes. The
// previous file is renamed, with ".before-restore" appended.
func Restore(ctx context.Context, path string, from io.Reader) error {
	fresh := path + ".restore"
	if err := restore(ctx, path, fresh, from); err != nil {
		_ = os.Remove(fresh)
		return fmt.Errorf("restore state %s: %w", path, err)
	}
	return nil
}

func restore(ctx context.Context, path, fresh string, from io.Reader) error {
	old, err := Open(path, Options{}) // checks that it is not in use, and its directory
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	if err == nil {
		defer func() { _ = old.Close() }() // last: the lock is held until then
	}
	if err := copyTo(fresh, from); err != nil {
		return err
	}
	if err := checkBackup(ctx, fresh); err != nil {
		return err
	}
	if err := os.Rename(path, path+".before-restore"); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// checkBackup returns an error unless the file at path is a whole backup.
func checkBackup(ctx context.Context, path string) error {
	b, err := Open(path, Options{})
	if err == nil {
		err = errors.Join(b.Check(ctx), b.Close())
	}
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %w", errNoBackup, err)
	}
	return err
}

var errNoBackup = errors.New("this is no whole backup, so nothing was changed")

// copyTo copies a backup to a new file at path. Of input that does not begin as a backup
// nothing is copied: root may have been led to a file that the owner of path must not read.
func copyTo(path string, from io.Reader) error {
	in := bufio.NewReader(from)
	if head, err := in.Peek(pageHeader + 4); err != nil || binary.NativeEndian.Uint32(head[pageHeader:]) != magic {
		return fmt.Errorf("%w: %w: the first page is not that of a backup", errNoBackup, ErrDamaged)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncFolder flushes renames to disk.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
