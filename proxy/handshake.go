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
			t.certificate = cert.Leaf
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
	c.transport.handshaking = true
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
	c.transport.handshaking = false
	state := t.ConnectionState()
	if state.DidResume { // TLS 1.2 chooses a certificate, and does not send it
		c.transport.certificate = nil
	}
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
		if e.Reason == RejectedCertificate {
			c.observe(c.transport.rejection(c.Client, e.Hello.ServerName, e.Version, e.Alert))
		}
	}
	c.transport.hello = nil
	if err != nil {
		c.transport.certificate = nil
	}
	return err
}

// noticeRejection emits CertificateRejected, once, if err is an alert that rejects
// the certificate. err is that of a Read, and the client has sent nothing since the
// handshake.
func (c *Conn) noticeRejection(err error) {
	alert := certificateAlert(err, 0)
	if alert == "" {
		return
	}
	if state := c.Client.TLS; state != nil && c.observe != nil {
		c.observe(c.transport.rejection(c.Client, state.ServerName, state.Version, alert))
	}
	c.transport.certificate = nil
}

// rejection returns the event of an alert that rejects the certificate sent.
func (t *transport) rejection(client Client, serverName string, version uint16, alert string) CertificateRejected {
	return CertificateRejected{Client: client, ServerName: serverName, Version: version, Alert: alert, NotAfter: t.certificate.NotAfter}
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
	if e.Version == 0 {
		e.Version = newest(e.Hello)
	}
	switch {
	case e.Result == HandshakeError:
		e.Reason = t.reason()
	case e.Result == HandshakeClientAbort && t.certificate != nil:
		e.Reason = LeftAfterCertificate
		sent, _ := t.clientAlert()
		if e.Alert = certificateAlert(e.Err, sent); e.Alert != "" {
			e.Reason = RejectedCertificate
		}
	}
	if e.Reason != NoVersion && e.Reason != NoCipher {
		return
	}
	for p := Modern; p <= Legacy; p++ {
		if p.accepts(e.Hello, t.key()) {
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
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op != localError || errors.Is(err, io.EOF) {
		return HandshakeClientAbort
	}
	// OpenSSL sends its alert unencrypted where TLS 1.3 encrypts it (RFC 8446 section
	// 6). crypto/tls tries to decrypt the alert, and blames the record.
	if _, ok := c.transport.clientAlert(); ok {
		return HandshakeClientAbort
	}
	return HandshakeError
}

// silent reports whether not one octet has come from the client.
func (c *Conn) silent() bool { return c.transport.received.Load() == 0 && len(c.transport.early) == 0 }

// The values of net.OpError.Op in errors of crypto/tls: who has sent the alert.
const (
	localError  = "local error"
	remoteError = "remote error"
)

// certificateAlerts are the alerts by which a client rejects a certificate, RFC 8446
// section 6.2. Of access_denied it says that the certificate was valid; NSS sends
// access_denied for certificates that its user distrusts.
var certificateAlerts = [...]struct {
	number uint8
	name   string
}{
	{42, "bad_certificate"}, // also: no certificate for the name
	{43, "unsupported_certificate"},
	{44, "certificate_revoked"},
	{45, "certificate_expired"},
	{46, "certificate_unknown"},
	{48, "unknown_ca"},
	{49, "access_denied"},
	{113, "bad_certificate_status_response"},
}

// CertificateAlerts returns the values of CertificateRejected.Alert.
func CertificateAlerts() (names []string) {
	for _, a := range certificateAlerts {
		names = append(names, a.name)
	}
	return names
}

// certificateAlert returns the name of the alert by which the client rejects the
// certificate, or "". err is an error of crypto/tls, and sent the unencrypted alert
// of the client; 0: none, or close_notify.
func certificateAlert(err error, sent uint8) string {
	op, remote := errors.AsType[*net.OpError](err)
	remote = remote && op.Op == remoteError
	for _, a := range certificateAlerts {
		if a.number == sent || remote && op.Err.Error() == tls.AlertError(a.number).Error() {
			return a.name
		}
	}
	return ""
}

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
