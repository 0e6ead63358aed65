package service

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
)

// A successor that has stopped must not stop its predecessor, too: the word may
// be a guard's whole memory.
func TestAWordThatNobodyTakesIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer func() { _ = theirs.Close() }()
		r := &Peer{conn: ours}
		if err := r.send(message{Serving: true}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
