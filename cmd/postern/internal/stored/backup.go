package stored

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"postern/proxy/state"
)

// piece bounds the octets of a backup in one value on the socket.
const piece = 256 << 10

// BackupState answers with the record, as it is at one moment, in pieces.
var BackupState = Question[struct{}, []byte]{"state/backup", func(ctx context.Context, m *Storage, _ struct{}, each func([]byte) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(writer(each), piece)
	if _, err := a.Record.WriteTo(w); err != nil {
		return err
	}
	return w.Flush()
}}

// A writer is a function as an io.Writer.
type writer func([]byte) error

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) { return len(p), w(p) }

// CreateFile creates a file with the output of write. After an error there is no file.
func CreateFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".")
	if err != nil {
		return err
	}
	err = write(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// KeepBrakes copies the brakes that were on before a restore into the restored record,
// and writes their backends to out: a backup is older than the present fault of the
// mailboxes.
func KeepBrakes(ctx context.Context, record string, out io.Writer) error {
	brakes, err := readBrakes(ctx, record+".before-restore")
	if err != nil {
		_, err = fmt.Fprintf(out, "whether a brake was on cannot be read (%v): look at the mailboxes before Postern starts\n", err)
		return err
	}
	b, err := state.Open(record, state.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	into := b.Bucket(BrakeBucket)
	for _, name := range slices.Sorted(maps.Keys(brakes)) {
		if err := into.Put(ctx, name, brakes[name]); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "the brake of %s stays as it was before\n", name); err != nil {
			return err
		}
	}
	return nil
}

// readBrakes returns the states of brakes in the record at path, by backend.
func readBrakes(ctx context.Context, path string) (brakes map[string][]byte, err error) {
	b, err := state.Open(path, state.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	brakes = make(map[string][]byte)
	err = b.Bucket(BrakeBucket).Scan(ctx, "", func(name string, value []byte) error {
		brakes[name] = slices.Clone(value)
		return nil
	})
	return brakes, err
}
