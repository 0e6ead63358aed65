package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern/configs"
)

// predecessorFD is the environment variable with the descriptor of the socket
// pair.
const predecessorFD = "POSTERN_PREDECESSOR_FD"

// buildTimeout and serveTimeout bound the steps of the other process.
const (
	buildTimeout = time.Minute
	serveTimeout = time.Minute
)

// A message is sent between the two processes of an upgrade, as JSON.
type message struct {
	Built    bool           `json:",omitempty"`
	Control  string         `json:",omitempty"` // with Built: the control socket
	Mistakes configs.Errors `json:",omitempty"`
	Error    string         `json:",omitempty"`
	Yours    *handover      `json:",omitempty"`
	Serving  bool           `json:",omitempty"`
	Take     *maildropName  `json:",omitempty"`
	Free     *maildropName  `json:",omitempty"`
	Evict    *maildropName  `json:",omitempty"`
	Ask      *peerRequest   `json:",omitempty"`
	Answer   *peerAnswer    `json:",omitempty"`
	Outcomes []byte         `json:",omitempty"` // a batch of outcomes.Memory.Export
}

// A handover has the data that the old process sends to the new one beside the files.
type handover struct {
	Locks map[string][]string // open maildrops, by backend
	Guard []byte              // the guard's memory; nil: the state has it

	NameKey []byte         // of the hashes of names in the log and in outcomes
	PID     int            // of the old process, which answers Ask; 0: it does not
	Drains  []DrainRequest // servers of backends that are drained
	Drained bool           // this Postern is drained
}

type maildropName struct{ Backend, Maildrop string }

// A Peer is the other process of an upgrade.
type Peer struct {
	conn net.Conn
	in   *json.Decoder

	mu   sync.Mutex // held while writing
	gone atomic.Bool

	// Of a predecessor:
	pid    int         // 0: it does not answer Ask
	served atomic.Bool // it knows that this process serves, and waits for Ask
	asking asking
}

func newPeer(f *os.File) (*Peer, error) {
	conn, err := net.FileConn(f)
	_ = f.Close() // conn has its own descriptor
	if err != nil {
		return nil, err
	}
	return &Peer{conn: conn, in: json.NewDecoder(conn)}, nil
}

func (r *Peer) send(m message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.conn.SetWriteDeadline(time.Now().Add(serveTimeout)); err != nil { // a stopped process does not read
		return err
	}
	return json.NewEncoder(r.conn).Encode(m)
}

// receive returns the next message. It returns an error if no message comes within
// timeout, or if the other process reports an error.
func (r *Peer) receive(timeout time.Duration) (m message, err error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return m, err
	}
	err = r.in.Decode(&m)
	_ = r.conn.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, io.EOF):
		return m, errors.New("the other process has ended: its last lines in the log say why")
	case err != nil:
		return m, fmt.Errorf("the other process: %w", err)
	case m.Mistakes != nil:
		return m, m.Mistakes
	case m.Error != "":
		return m, errors.New(m.Error)
	}
	return m, nil
}

// await receives messages until meant returns true for one, which it returns. Messages
// about maildrops may come before that message; await passes them to meanwhile.
func (r *Peer) await(timeout time.Duration, meant func(message) bool, meanwhile func(message)) (m message, err error) {
	for {
		if m, err = r.receive(timeout); err != nil || meant(m) {
			return m, err
		}
		if m.Take == nil && m.Free == nil && m.Evict == nil {
			return m, errors.New("the other process says what was not asked")
		}
		meanwhile(m)
	}
}

// receiveAll hands each message to f until the other process is gone.
func (r *Peer) receiveAll(f func(message)) {
	for {
		var m message
		if err := r.in.Decode(&m); err != nil {
			return
		}
		f(m)
	}
}

// Predecessor returns the process that this process shall replace, or nil.
func Predecessor() (*Peer, error) {
	fd, err := strconv.Atoi(os.Getenv(predecessorFD))
	if err != nil {
		return nil, nil
	}
	if err := os.Unsetenv(predecessorFD); err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return newPeer(os.NewFile(uintptr(fd), "predecessor"))
}

// Reject reports an error to a predecessor, which this process then does not replace.
func (r *Peer) Reject(err error) {
	m := message{Error: err.Error()}
	if mistakes, ok := errors.AsType[configs.Errors](err); ok {
		m = message{Mistakes: mistakes}
	}
	_ = r.send(m)
}
