package crawl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxOutcome bounds a line of a journal, in octets.
const maxOutcome = 4 << 20

// A Journal keeps the outcomes of a crawl, in a file of JSON lines. It has no passwords.
type Journal[T any] struct {
	file *os.File // nil: outcomes are not kept
	done map[string]Outcome[T]
}

// OpenJournal opens the journal at path, or begins it; "" keeps nothing. what is the crawl
// that the outcomes are of: the journal of another one is an error.
func OpenJournal[T any](path, what string) (*Journal[T], error) {
	j := &Journal[T]{done: make(map[string]Outcome[T])}
	if path == "" {
		return j, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := j.read(f, what); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	j.file = f
	return j, nil
}

// read reads the outcomes in f. Of a line that was cut off by a crash nothing is kept.
func (j *Journal[T]) read(f *os.File, what string) error {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, errors.New("it is no regular file"))
	}
	other := fmt.Errorf("it is not the file of this command (%s): take another one, or remove it", what)
	head, err := json.Marshal(what)
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, maxOutcome)
	end := int64(0) // of the last whole line
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if n == 1 && !bytes.HasPrefix(head, line) { // it would be lost
				return other
			}
			break
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if n == 1 {
			var of string
			if json.Unmarshal(line, &of) != nil || of != what {
				return other
			}
		} else {
			var o Outcome[T]
			if err := json.Unmarshal(line, &o); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			if o.Error == "" {
				j.done[o.User] = o
			}
		}
		end += int64(len(line))
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	if end > 0 {
		return nil
	}
	_, err = f.Write(append(head, '\n'))
	return err
}

func (j *Journal[T]) outcome(user string) (Outcome[T], bool) {
	o, ok := j.done[user]
	return o, ok
}

func (j *Journal[T]) add(o Outcome[T]) error {
	if j.file == nil {
		return nil
	}
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = j.file.Write(append(line, '\n'))
	return err
}

// Close closes the file.
func (j *Journal[T]) Close() error {
	if j.file == nil {
		return nil
	}
	return errors.Join(j.file.Sync(), j.file.Close())
}
