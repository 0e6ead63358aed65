package stored

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"postern/bridge"
	"postern/proxy/admin"
)

// AskGet, askSwap and askScan are what sessions of a predecessor ask.
const (
	AskGet  = "state/get"
	AskSwap = "state/swap"
	AskScan = "state/scan"
)

// askTime is how long a successor is asked.
const askTime = time.Minute

// askAgain is the pause before the state is asked again, askTimes how often
// that is while it comes back from a successor.
const (
	askAgain = 50 * time.Millisecond
	askTimes = 200
)

// A RemoteBucket is a bucket in the successor's hands. It is asked through the
// control socket.
type RemoteBucket struct {
	socket, bucket string
	back           <-chan struct{} // closed when the files will be ours again
}

// NewRemoteBucket returns the bucket of a name in the hands of the Postern that
// answers at socket. back is closed when the files are this process's again.
func NewRemoteBucket(socket, name string, back <-chan struct{}) bridge.Book {
	return RemoteBucket{socket, name, back}
}

// A Entry is a key of a bucket, or the beginning of keys, and what is or shall be
// there.
type Entry struct {
	Bucket, Key string
	Old, New    []byte
}

var errFilesReturned = errors.New("the state is not the successor's")

// Get implements bridge.Store.
func (b RemoteBucket) Get(ctx context.Context, key string) (value []byte, err error) {
	return value, b.ask(ctx, AskGet, Entry{Bucket: b.bucket, Key: key}, &value)
}

// Put implements bridge.Store.
func (b RemoteBucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update implements bridge.Store.
func (b RemoteBucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll implements bridge.Book.
func (b RemoteBucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	for {
		cells := make([]Entry, len(keys))
		for i, key := range keys {
			old, err := b.Get(ctx, key)
			if err != nil {
				return err
			}
			value, err := change(key, old)
			if err != nil {
				return err
			}
			cells[i] = Entry{b.bucket, key, old, value}
		}
		var done bool
		if err := b.ask(ctx, AskSwap, cells, &done); err != nil || done {
			return err
		}
	}
}

// Scan implements bridge.Book.
func (b RemoteBucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	var cells []Entry
	if err := b.ask(ctx, AskScan, Entry{Bucket: b.bucket, Key: prefix}, &cells); err != nil {
		return err
	}
	for _, c := range cells {
		if err := each(c.Key, c.Old); err != nil {
			return err
		}
	}
	return nil
}

// ask waits for a successor that is not there yet. What it asks can be asked
// twice.
func (b RemoteBucket) ask(ctx context.Context, name string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for {
		err := admin.Call(ctx, b.socket, name, in, out)
		if err == nil || !slices.ContainsFunc(disconnected, func(one error) bool { return errors.Is(err, one) }) {
			return err
		}
		select {
		case <-b.back:
			return errFilesReturned
		case <-time.After(askAgain):
		case <-ctx.Done():
			return err
		}
	}
}

// disconnected are the errors of asking a process that ends meanwhile, or is no more.
var disconnected = []error{admin.ErrNotRunning, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE}

// Swap puts values in the place of others, of one bucket, if all of those are
// there still.
func (m *Storage) Swap(ctx context.Context, cells []Entry) (bool, error) {
	if len(cells) == 0 {
		return true, nil
	}
	b, err := m.Bucket(cells[0].Bucket)
	if err != nil {
		return false, err
	}
	keys, byKey := make([]string, len(cells)), make(map[string]Entry, len(cells))
	for i, c := range cells {
		keys[i], byKey[c.Key] = c.Key, c
	}
	err = b.UpdateAll(ctx, keys, func(key string, old []byte) ([]byte, error) {
		c := byKey[key]
		if !bytes.Equal(old, c.Old) {
			return nil, errChanged
		}
		return c.New, nil
	})
	if errors.Is(err, errChanged) {
		return false, nil
	}
	return err == nil, err
}

var errChanged = errors.New("another was faster")

func (m *Storage) Bucket(name string) (*Bucket, error) {
	if b := m.Buckets[name]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("there is no bucket %q", name)
}
