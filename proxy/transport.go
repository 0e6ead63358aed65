package proxy

import (
	"crypto/tls"
	"crypto/x509"
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
	handshakeState
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

// Write gives each piece (under TLS: each record) its own deadline. So a slow
// client may take hours for a big message, and the connection of a client that
// reads nothing ends.
func (t *transport) Write(p []byte) (int, error) {
	t.recordAlert(p)
	if stall := time.Duration(t.stall.Load()); stall > 0 {
		if err := t.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			return 0, err
		}
	}
	return t.Conn.Write(p)
}

// CloseWrite sends FIN. It does nothing on a connection that has no half-close.
func (t *transport) CloseWrite() error {
	if c, ok := t.Conn.(closeWriter); ok {
		return c.CloseWrite()
	}
	return nil
}

type closeWriter interface{ CloseWrite() error }

const (
	lingerTime = time.Second
	lingerMax  = 64 << 10 // octets that are read and discarded
)

// limitLastWrites sets the deadline of each further Write to a second.
func (t *transport) limitLastWrites() { t.stall.Store(int64(lingerTime)) }

// linger closes the connection after the peer could read the last words. A close
// with unread input in the socket's buffer would send RST, and RST discards what
// the peer has not read yet.
func (t *transport) linger() {
	if c, ok := t.Conn.(closeWriter); ok && c.CloseWrite() == nil {
		_ = t.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, t.Conn, lingerMax)
	}
	_ = t.Close()
}

// recordAlert records the unencrypted fatal alert at the end of what crypto/tls
// writes, if there is one.
func (t *transport) recordAlert(p []byte) {
	const record, fatal = 21, 2
	if p = p[max(0, len(p)-7):]; len(p) == 7 && p[0] == record && p[3] == 0 && p[4] == 2 && p[5] == fatal {
		t.alert = p[6]
	}
}

// handshakeState is what a transport knows about the handshake on it.
type handshakeState struct {
	hello *tls.ClientHelloInfo    // nil before it came, and after the handshake
	key   x509.PublicKeyAlgorithm // of the certificate chosen; 0: none was
	alert uint8                   // sent; 0: none
}
