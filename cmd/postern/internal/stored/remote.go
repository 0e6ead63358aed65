package stored

import (
	"context"
	"errors"
	"io"
	"slices"
	"syscall"
	"time"

	"postern/bridge"
	"postern/proxy/admin"
)

// AskGet, AskSwap and AskScan are the requests of the sessions of a predecessor.
const (
	AskGet  = "state/get"
	AskSwap = "state/swap"
	AskScan = "state/scan"
)

// askTime bounds the time of a request to a successor, with its repetitions.
const askTime = time.Minute

// A RemoteBucket is a bucket of the successor, which has the files. It is read and
// written through the successor's control socket.
type RemoteBucket struct {
	socket, bucket string
	back           <-chan struct{} // closed when this process gets the files again
}

// NewRemoteBucket returns the bucket with a name of the Postern that answers at socket.
// The caller closes back when this process gets the files again.
func NewRemoteBucket(socket, name string, back <-chan struct{}) bridge.Bucket {
	return RemoteBucket{socket, name, back}
}

// An Entry is a key of a bucket, or a prefix of keys, with its present value and the
// new one.
type Entry struct {
	Bucket, Key string
	Old, New    []byte
}

// Get implements bridge.Bucket.
func (b RemoteBucket) Get(ctx context.Context, key string) (value []byte, err error) {
	return value, b.ask(ctx, AskGet, Entry{Bucket: b.bucket, Key: key}, &value)
}

// Put implements bridge.Bucket.
func (b RemoteBucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update implements bridge.Bucket.
func (b RemoteBucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll implements bridge.Bucket.
func (b RemoteBucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	for {
		entries := make([]Entry, len(keys))
		for i, key := range keys {
			old, err := b.Get(ctx, key)
			if err != nil {
				return err
			}
			value, err := change(key, old)
			if err != nil {
				return err
			}
			entries[i] = Entry{b.bucket, key, old, value}
		}
		var done bool
		if err := b.ask(ctx, AskSwap, entries, &done); err != nil || done {
			return err
		}
	}
}

// Scan implements bridge.Bucket.
func (b RemoteBucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	var entries []Entry
	if err := b.ask(ctx, AskScan, Entry{Bucket: b.bucket, Key: prefix}, &entries); err != nil {
		return err
	}
	for _, c := range entries {
		if err := each(c.Key, c.Old); err != nil {
			return err
		}
	}
	return nil
}

// ask sends a request, and repeats the request while the successor does not answer yet.
// A request may therefore arrive twice.
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

// disconnected are the errors of a request to a process that ends, or has ended.
var disconnected = []error{admin.ErrNotRunning, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE}
