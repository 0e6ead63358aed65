package backend

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Fault is why no login at a server is possible, as far as a setting here or there
// can mend it.
type Fault uint8

// The values of Fault, in the order in which a connection meets them.
const (
	OtherFault         Fault = iota
	NameNotFound             // DNS has no such name
	LookupFailed             // DNS gave no answer
	NoSource                 // this machine does not have Server.Source
	ConnectionRefused        // nothing listens, or a firewall rejects
	NoRoute                  // the network or the host cannot be reached
	ConnectTimeout           // nothing answers, or a firewall drops
	NotTLS                   // the server does not begin with TLS
	TLSTimeout               // no answer to the TLS handshake
	TLSTooOld                // the server speaks no version of TLS that Postern does
	NoCommonCipher           // the server has no key exchange or cipher that Postern offers
	SelfSigned               // the certificate is its own authority
	UnknownAuthority         // the certificate is signed by an authority that is not trusted
	WrongName                // the certificate is for other names
	CertificateExpired       // the time of the certificate is over
	CertificateNotYet        // the time of the certificate has not begun
	ConnectionClosed         // the server closed the connection before its greeting
	GreetingTimeout          // no greeting came
	OtherProtocol            // the greeting is that of another protocol
	Rejected                 // the greeting refuses the connection
	HeaderRefused            // the server takes the PROXY header for a command, as it seems
	NoSTARTTLS               // the server does not offer STARTTLS, or refuses it
	PasswordsDisabled        // IMAP LOGINDISABLED
	NoMechanism              // no AUTH, or with mechanisms alone that Postern does not speak; POP3: no USER either
)

// A ConnectError is why a server could not be used.
type ConnectError struct {
	Fault  Fault
	Text   string   // what happened; octets of the server in it are quoted and few
	Speaks string   // the protocol that the server speaks, for NotTLS and OtherProtocol; "": not known
	Names  []string // WrongName: what the certificate is for, at most maxNames
	Advice Advice   // what an operator can do, from Server.Advise
	Err    error    // the cause; nil: Text is all that there is
}

// An Advice says what an operator can do about a fault.
type Advice struct {
	Where string // file:line: key of the setting; "": none
	Text  string
}

// Error returns what happened, what can be done, and where.
func (e *ConnectError) Error() string {
	text := e.Message()
	if e.Advice.Where != "" {
		text += " (" + e.Advice.Where + ")"
	}
	return text
}

// Message returns what happened and what can be done.
func (e *ConnectError) Message() string {
	if e.Advice.Text == "" {
		return e.Text
	}
	return e.Text + "; " + e.Advice.Text
}

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Err }

// advise returns err with the advice for it. ctx is that of the connection: what ends
// with it is no fault of the server.
func (s *Server) advise(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if e, ok := errors.AsType[*ConnectError](err); ok {
		_ = s.advised(e) // e is in err's tree
	}
	return err
}

// advised returns e with the advice for it.
func (s *Server) advised(e *ConnectError) *ConnectError {
	if s.Advise != nil {
		e.Advice = s.Advise(e)
	}
	return e
}

// sendsHeaderInTheClear reports whether Postern sends a PROXY header in the clear.
func (s *Server) sendsHeaderInTheClear() bool {
	return s.TLS != Implicit && (s.Identity == ProxyV1 || s.Identity == ProxyV2)
}

// headerFault returns err as a ConnectError, if it may be the answer to a PROXY header: a
// server that does not expect the header greets first, and then takes it for a command.
func (s *Server) headerFault(err error) error {
	if _, ok := errors.AsType[*ConnectError](err); err == nil || ok || !s.sendsHeaderInTheClear() || isTimeout(err) {
		return err
	}
	return &ConnectError{Fault: HeaderRefused, Text: err.Error(), Err: err}
}

func errNoSTARTTLS() error {
	return &ConnectError{Fault: NoSTARTTLS, Text: "the server does not offer STARTTLS"}
}

// dialError returns err of a dialer as a ConnectError, if an operator can do something
// about it.
func dialError(err error, address string) error {
	e := &ConnectError{Err: err}
	reached := address
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil {
		reached = op.Addr.String()
	}
	if reached != address {
		reached = address + " (" + reached + ")"
	}
	lookup, failed := errors.AsType[*net.DNSError](err)
	switch {
	case failed && lookup.IsNotFound:
		e.Fault, e.Text = NameNotFound, fmt.Sprintf("no address is known of the name %s", lookup.Name)
	case failed:
		e.Fault, e.Text = LookupFailed, fmt.Sprintf("look-up of the name %s: %s", lookup.Name, lookup.Err)
	case isSourceMissing(err):
		e.Fault, e.Text = NoSource, noSource
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Source != nil {
			host, _, _ := net.SplitHostPort(op.Source.String())
			e.Text += ": " + host
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Fault, e.Text = ConnectionRefused, fmt.Sprintf("connection refused: nothing listens at %s", reached)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		call, _ := errors.AsType[syscall.Errno](err)
		e.Fault, e.Text = NoRoute, fmt.Sprintf("%v: %s cannot be reached", call, reached)
	case isTimeout(err):
		e.Fault, e.Text = ConnectTimeout, fmt.Sprintf("no answer from %s", reached)
	default:
		return err
	}
	return e
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return errors.Is(err, os.ErrDeadlineExceeded) || ok && timeout.Timeout()
}

// isClosed reports whether err means that the other end has closed the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// greetingError returns err about the greeting of a server that should speak protocol.
// err nil means that the greeting refuses the connection.
func (c *Conn) greetingError(err error, protocol string) error {
	const mostSaid = 120 // octets that are shown
	received := c.replies.Received()
	line, _, _ := bytes.Cut(received, []byte("\r\n"))
	said := fmt.Sprintf("it said %q", wire.Excerpt(string(line), mostSaid))
	e := &ConnectError{Err: err, Speaks: spokenProtocol(received)}
	switch {
	case e.Speaks != "" && e.Speaks != protocolNames[protocol]:
		e.Fault, e.Text = OtherProtocol, fmt.Sprintf("the server speaks %s: %s", e.Speaks, said)
	case err == nil:
		e.Fault, e.Text = Rejected, fmt.Sprintf("the server refuses the connection: %s", said)
	case isTimeout(err) && len(received) == 0:
		e.Fault, e.Text = GreetingTimeout, fmt.Sprintf("no greeting came within %v", c.timeout)
	case isClosed(err) && len(received) == 0:
		e.Fault, e.Text = ConnectionClosed, "the server closed the connection before its greeting"
	case len(received) > 0:
		return fmt.Errorf("%w: %s", err, said)
	default:
		return err
	}
	return e
}

// The names of protocols in texts.
const (
	spokenIMAP  = "IMAP"
	spokenSMTP  = "SMTP"
	spokenLMTP  = "LMTP"
	spokenPOP3  = "POP3"
	spokenSieve = "ManageSieve"
	spokenHTTP  = "HTTP"
	spokenSSH   = "SSH"
	spokenTLS   = "TLS"
)

var protocolNames = map[string]string{proxy.IMAP: spokenIMAP, proxy.POP3: spokenPOP3, proxy.Submission: spokenSMTP, proxy.Sieve: spokenSieve}

// spokenProtocol returns the protocol of a server that begins with these octets, or "".
func spokenProtocol(octets []byte) string {
	line, _, _ := strings.Cut(string(octets[:min(len(octets), 512)]), "\r\n")
	begins := func(words ...string) bool {
		for _, word := range words {
			if strings.HasPrefix(line, word) {
				return true
			}
		}
		return false
	}
	digits := len(line) - len(strings.TrimLeft(line, "0123456789"))
	switch {
	case begins("* "):
		return spokenIMAP
	case begins("+OK", "-ERR"):
		return spokenPOP3
	case begins(`"IMPL`, `"SIEVE`):
		return spokenSieve
	case begins("HTTP/"):
		return spokenHTTP
	case begins("SSH-"):
		return spokenSSH
	case begins("\x15\x03", "\x16\x03"): // RFC 8446 section 5.1: an alert, a handshake
		return spokenTLS
	case digits == 3 && line[0] >= '2' && line[0] <= '5' && (len(line) == 3 || line[3] == ' ' || line[3] == '-'):
		for word := range strings.FieldsSeq(line) {
			if word == spokenLMTP {
				return spokenLMTP
			}
		}
		return spokenSMTP
	}
	return ""
}

// tlsFault returns err of a TLS handshake with a server as a ConnectError, if an
// operator can do something about it. crypto/tls has no types for alerts: they are known
// by their texts.
func tlsFault(err error, config *tls.Config, timeout time.Duration) error {
	const (
		handshakeFailure = 40 // RFC 8446 section 6
		protocolVersion  = 70
	)
	alert := ""
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		alert = op.Err.Error()
	}
	e := &ConnectError{Err: err}
	record, plain := errors.AsType[tls.RecordHeaderError](err)
	certificate, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case plain:
		e.Fault, e.Speaks = NotTLS, spokenProtocol(record.RecordHeader[:])
		e.Text = fmt.Sprintf("the server does not begin with TLS: its first octets are %q", record.RecordHeader[:])
	case alert == tls.AlertError(protocolVersion).Error(), strings.HasPrefix(err.Error(), "tls: server selected unsupported protocol version"):
		e.Fault, e.Text = TLSTooOld, fmt.Sprintf("%v: the server speaks no TLS 1.2, and Postern nothing older to servers", err)
	case alert == tls.AlertError(handshakeFailure).Error():
		e.Fault = NoCommonCipher
		e.Text = fmt.Sprintf("%v: the server has no key exchange or cipher that Postern offers to servers (ECDHE with AES or ChaCha20): "+
			"has it RSA key exchange alone?", err)
	case unverified && len(certificate.UnverifiedCertificates) > 0:
		return certificateFault(certificate, config)
	case isTimeout(err):
		e.Fault, e.Text = TLSTimeout, fmt.Sprintf("no answer to the TLS handshake within %v", timeout)
	case isClosed(err):
		e.Fault, e.Text = ConnectionClosed, "the server closed the connection in the TLS handshake"
	default:
		return err
	}
	return e
}

const (
	maxNames = 5   // of a certificate in a text
	maxName  = 100 // octets of each
)

// certificateFault returns why the certificate of a server is not accepted. The texts of
// crypto/x509 may hold as many names as the server likes.
func certificateFault(err *tls.CertificateVerificationError, config *tls.Config) error {
	now := time.Now()
	if config.Time != nil {
		now = config.Time()
	}
	e := &ConnectError{Err: err}
	leaf := err.UnverifiedCertificates[0]
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	_, otherName := errors.AsType[x509.HostnameError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	issuer := shorten(leaf.Issuer.String())
	const layout = "2006-01-02 15:04 UTC"
	switch {
	case invalid.Cert != nil && invalid.Reason == x509.Expired && now.Before(invalid.Cert.NotBefore):
		e.Fault, e.Text = CertificateNotYet, "a certificate of the server is valid only from "+invalid.Cert.NotBefore.UTC().Format(layout)
	case invalid.Cert != nil && invalid.Reason == x509.Expired:
		e.Fault, e.Text = CertificateExpired, "a certificate of the server has expired, on "+invalid.Cert.NotAfter.UTC().Format(layout)
	case otherName:
		e.Fault, e.Names = WrongName, certificateNames(leaf)
		of := "no name at all (it has no subjectAltName)"
		if len(e.Names) > 0 {
			of = strings.Join(e.Names, ", ")
		}
		if rest := len(leaf.DNSNames) + len(leaf.IPAddresses) - len(e.Names); rest > 0 && len(e.Names) > 0 {
			of += fmt.Sprintf(" and %d more", rest)
		}
		e.Text = fmt.Sprintf("the certificate of the server is not for %s, but for %s", config.ServerName, of)
	case unknown && isSelfSigned(leaf):
		e.Fault, e.Text = SelfSigned, fmt.Sprintf("the certificate of the server is self-signed (%q)", issuer)
	case unknown:
		e.Fault, e.Text = UnknownAuthority, fmt.Sprintf("the certificate of the server is signed by an authority that is not trusted (%q)", issuer)
	default:
		return err
	}
	return e
}

// certificateNames returns the first names in a certificate that are host names or
// addresses.
func certificateNames(c *x509.Certificate) (names []string) {
	odd := func(r rune) bool { return !wordOctet(byte(min(r, 0x7F))) && !strings.ContainsRune(".-_*", r) }
	for _, name := range c.DNSNames {
		if len(names) < maxNames && len(name) <= maxName && !strings.ContainsFunc(name, odd) {
			names = append(names, name)
		}
	}
	for _, address := range c.IPAddresses {
		if len(names) < maxNames {
			names = append(names, address.String())
		}
	}
	return names
}

func isSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}
