package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// ACMETLS is the ALPN protocol of a certificate authority that validates who holds
// a name (RFC 8737). Its connection ends with the handshake.
const ACMETLS = "acme-tls/1"

var errChallenge = errors.New("a certificate authority's challenge was answered")

// InstrumentTLS sets callbacks in config that record, for the Conn of each
// handshake, what the client offers and which certificate it gets, so that a failure
// can be explained. It returns config. config.GetCertificate must be set.
//
// GetConfigForClient never returns another Config: the other one would not use the
// session ticket keys of config.
func InstrumentTLS(config *tls.Config) *tls.Config {
	choose := config.GetCertificate
	config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if t, ok := h.Conn.(*transport); ok {
			t.hello = h
		}
		return nil, nil
	}
	config.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := choose(h)
		if t, ok := h.Conn.(*transport); ok && cert != nil && cert.Leaf != nil {
			t.key = cert.Leaf.PublicKeyAlgorithm
		}
		return cert, err
	}
	return config
}

// StartTLS does the handshake. Octets that are already buffered go to the
// handshake, so that injected commands make it fail (RFC 3207 section 6). After an
// error the Conn is as it was, without TLS.
func (c *Conn) StartTLS(ctx context.Context) error {
	c.transport.early = append([]byte(nil), c.buf[c.r:c.w]...)
	c.r = c.w
	c.wipe()
	begun := time.Now()
	c.mu.Lock()
	old := c.deadline
	c.mu.Unlock()
	if c.handshake > 0 {
		_ = c.SetReadDeadline(begun.Add(c.handshake))
	}
	t := tls.Server(c.transport, c.tls)
	// crypto/tls starts a goroutine for each handshake whose context can end. It is
	// not needed: Interrupt and the deadline end the handshake.
	err := t.HandshakeContext(context.WithoutCancel(ctx))
	if err == nil {
		_ = c.SetReadDeadline(old)
	}
	return c.finishHandshake(t, begun, err)
}

// finishHandshake puts TLS on the Conn if the handshake succeeded, and emits
// Handshake. It is a function of its own to keep the stack frame of StartTLS
// small: with 50 octets more, the stack of each client that does not go on with
// its handshake has 16 KiB instead of 8.
func (c *Conn) finishHandshake(t *tls.Conn, begun time.Time, err error) error {
	state := t.ConnectionState()
	if err == nil && state.NegotiatedProtocol == ACMETLS {
		err = errChallenge
	}
	if err == nil {
		c.Conn, c.Client.TLS = t, &state
		c.state.Store(&state)
	}
	if c.observe != nil {
		e := Handshake{Client: c.Client, Version: state.Version, Duration: time.Since(begun), Err: err}
		c.explain(&e)
		c.observe(e)
	}
	c.transport.hello = nil
	return err
}

// explain fills in the result of a handshake, and the reason if it failed.
func (c *Conn) explain(e *Handshake) {
	e.Result = c.handshakeResult(e.Err)
	if e.Err == nil {
		return
	}
	t := c.transport
	if e.Hello = t.hello; e.Hello == nil {
		return
	}
	e.Version = newest(e.Hello)
	if e.Result == HandshakeError {
		e.Reason = t.reason()
	}
	if e.Reason != NoVersion && e.Reason != NoCipher {
		return
	}
	for p := Modern; p <= Legacy; p++ {
		if p.accepts(e.Hello, t.key) {
			e.Needs = p.String()
			break
		}
	}
}

// handshakeResult returns the Handshake... constant of a handshake that ended with
// err.
func (c *Conn) handshakeResult(err error) string {
	switch {
	case err == nil:
		return HandshakeOK
	case errors.Is(err, errChallenge):
		return HandshakeChallenge
	}
	// An error without Conn means a TLS record of an obsolete version.
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok && record.Conn != nil {
		return HandshakeBadProtocol
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		switch {
		case c.interrupted():
			return HandshakeError
		case c.silent():
			return HandshakeSilent
		}
		return HandshakeTimeout
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op != "local error" || errors.Is(err, io.EOF) {
		return HandshakeClientAbort
	}
	return HandshakeError
}

// silent reports whether not one octet has come from the client.
func (c *Conn) silent() bool { return c.transport.received.Load() == 0 && len(c.transport.early) == 0 }

// Alerts, RFC 8446 section 6. The errors of crypto/tls have no types, so that only
// the alert it sends tells them apart.
const (
	alertHandshakeFailure      = 40
	alertProtocolVersion       = 70
	alertInternalError         = 80
	alertUnrecognizedName      = 112
	alertNoApplicationProtocol = 120
)

// reason returns the No... constant for the alert that refused the handshake.
func (t *transport) reason() string {
	switch t.alert {
	case alertProtocolVersion:
		return NoVersion
	case alertHandshakeFailure:
		return NoCipher
	case alertNoApplicationProtocol:
		return NoProtocol
	case alertUnrecognizedName, alertInternalError:
		return NoCertificate
	}
	return NoOther
}
