package stored

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"postern/configs"
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
	if a.Shared != nil {
		return fmt.Errorf("the record is not in a file of this Postern: %s has it: %s", a.Shared.Where, backupElsewhere)
	}
	w := bufio.NewWriterSize(writer(each), piece)
	if _, err := a.Record.WriteTo(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	now := time.Now()
	m.BackedUp.Store(&now)
	return nil
}}

// backupElsewhere says how a shared record is backed up.
const backupElsewhere = "back up PostgreSQL with pg_dump --table=postern_record DATABASE; at an owner run postern state backup there"

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

// OpenBackup opens the backup at path. Root does not follow links out of the state's
// directory: its owner would learn what the files of others contain.
func OpenBackup(cfg *configs.Config, path string) (*os.File, error) {
	f, err := openBackup(cfg.State.Path, path)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		err = fmt.Errorf("%w: run this as root, who can also restore what root has backed up", err)
	}
	return f, err
}

func openBackup(dir, path string) (*os.File, error) {
	inside, err := relative(dir, path)
	if err != nil || !filepath.IsLocal(inside) {
		return os.Open(path)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return root.Open(inside)
}

// relative returns path as it is named from dir.
func relative(dir, path string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.Rel(dir, path)
}

// Restore puts a backup in the place of the record, while no Postern runs, and writes to out
// what it has done. Root does that as the owner of the files.
func Restore(ctx context.Context, cfg *configs.Config, from io.Reader, out io.Writer) error {
	if cfg.State.Record != nil {
		return fmt.Errorf("restore state: the record is not in a file of this Postern: %s has it: restore it there", recordPlace(cfg))
	}
	record := filepath.Join(cfg.State.Path, RecordFile)
	if _, err := os.Stat(cfg.State.Path); errors.Is(err, fs.ErrNotExist) && os.Geteuid() == 0 {
		return fmt.Errorf("%w: make it for Postern's user, such as: install -d -m 0700 -o postern -g postern %s", err, cfg.State.Path)
	}
	return AsOwner(cfg.State.Path, func() error {
		if err := state.Restore(ctx, record, from); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "restored: %s; what was there is %s.before-restore\n", record, record); err != nil {
			return err
		}
		return keepBrakes(ctx, record, out)
	})
}

// keepBrakes copies the brakes that were on before a restore into the restored record,
// and writes their backends to out: a backup is older than the present fault of the
// mailboxes.
func keepBrakes(ctx context.Context, record string, out io.Writer) error {
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
