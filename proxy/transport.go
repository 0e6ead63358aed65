package proxy

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// A transport is the network connection under TLS, or alone before it.
type transport struct {
	net.Conn
	early    []byte       // read before the handshake began; the next Reads return it
	stall    atomic.Int64 // nanoseconds that one Write may wait for the peer; 0: for ever
	received atomic.Int64 // octets on the wire
	handshakeNotes
}

func (t *transport) Read(p []byte) (int, error) {
	if len(t.early) > 0 {
		n := copy(p, t.early)
		clear(t.early[:n])
		t.early = t.early[n:]
		return n, nil
	}
	n, err := t.Conn.Read(p)
	t.received.Add(int64(n))
	return n, err
}

// Write gives each piece (under TLS: each record) its own deadline, so that a
// slow client may take hours for a big message, and one that takes nothing is
// let go.
func (t *transport) Write(p []byte) (int, error) {
	t.noteAlert(p)
	if stall := time.Duration(t.stall.Load()); stall > 0 {
		if err := t.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			return 0, err
		}
	}
	return t.Conn.Write(p)
}

// CloseWrite sends FIN. Where the connection has no such thing it does nothing.
func (t *transport) CloseWrite() error {
	if c, ok := t.Conn.(closeWriter); ok {
		return c.CloseWrite()
	}
	return nil
}

type closeWriter interface{ CloseWrite() error }

const (
	lingerTime = time.Second
	lingerMax  = 64 << 10
)

// hurry gives what is still written on the way out a second.
func (t *transport) hurry() { t.stall.Store(int64(lingerTime)) }

// linger closes after the peer has had the chance to read our last words: a
// close with unread input in the buffer would send RST, and RST destroys what
// the peer has not read yet.
func (t *transport) linger() {
	if c, ok := t.Conn.(closeWriter); ok && c.CloseWrite() == nil {
		_ = t.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, t.Conn, lingerMax)
	}
	_ = t.Close()
}
