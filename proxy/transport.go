package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"sync/atomic"
	"time"
)

// A transport is the network connection under TLS, or alone before it.
type transport struct {
	Socket
	early    []byte       // read before the handshake began; the next Reads return it
	noWait   bool         // Read does not wait, and after it had less than it has room for it does not ask again
	drained  bool         // with noWait: that was so
	stall    atomic.Int64 // nanoseconds that one Write may wait for the peer; 0: for ever
	received atomic.Int64 // octets on the wire
	handshakeState
}

func (t *transport) Read(p []byte) (int, error) {
	if len(t.early) > 0 {
		n := copy(p, t.early)
		clear(t.early[:n])
		t.early = t.early[n:]
		t.recordTail(p[:n])
		return n, nil
	}
	n, err := t.readSocket(p)
	t.received.Add(int64(n))
	t.recordTail(p[:n])
	return n, err
}

func (t *transport) readSocket(p []byte) (n int, err error) {
	switch {
	case !t.noWait:
		return t.Socket.Read(p)
	case t.drained:
		return 0, errNoInput
	}
	n, err = t.ReadNoWait(p)
	t.drained = n < len(p)
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
	return t.Socket.Write(p)
}

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
	if _, ok := t.Conn.(closeWriter); ok && t.CloseWrite() == nil {
		_ = t.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, t.Socket, lingerMax)
	}
	_ = t.Close()
}

// recordAlert records the unencrypted fatal alert at the end of what crypto/tls
// writes, if there is one.
func (t *transport) recordAlert(p []byte) {
	if level, alert, ok := parseAlert(p[max(0, len(p)-alertSize):]); ok && level == fatal {
		t.alert = alert
	}
}

// recordTail keeps the last octets that came during the handshake.
func (t *transport) recordTail(p []byte) {
	if !t.handshaking {
		return
	}
	if p = p[max(0, len(p)-alertSize):]; len(p) < alertSize {
		copy(t.tail[:], t.tail[len(p):])
	}
	copy(t.tail[alertSize-len(p):], p)
}

// clientAlert returns the unencrypted alert with which the client has ended the
// handshake, fatal or a warning, if there is one.
func (t *transport) clientAlert() (alert uint8, ok bool) {
	_, alert, ok = parseAlert(t.tail[:])
	return alert, ok
}

// An unencrypted alert is a record with 2 octets: RFC 5246 section 7.2.
const (
	alertSize = 7
	warning   = 1
	fatal     = 2
)

// parseAlert parses a record that is an unencrypted alert. An encrypted one is
// longer.
func parseAlert(record []byte) (level, alert uint8, ok bool) {
	const recordType, major = 21, 3
	if len(record) != alertSize || record[0] != recordType || record[1] != major || record[3] != 0 || record[4] != 2 {
		return 0, 0, false
	}
	if level = record[5]; level != warning && level != fatal {
		return 0, 0, false
	}
	return level, record[6], true
}

// handshakeState is what a transport knows about the handshake on it.
type handshakeState struct {
	hello       *tls.ClientHelloInfo // nil before it came, and after the handshake
	certificate *x509.Certificate    // that the client was sent; nil: none was, or the client went on after the handshake
	alert       uint8                // sent; 0: none
	handshaking bool                 // the handshake has begun and not ended
	tail        [alertSize]byte      // the last octets that came during the handshake
}

// key returns the kind of key of the certificate; 0: no certificate was chosen.
func (t *transport) key() x509.PublicKeyAlgorithm {
	if t.certificate == nil {
		return x509.UnknownPublicKeyAlgorithm
	}
	return t.certificate.PublicKeyAlgorithm
}
