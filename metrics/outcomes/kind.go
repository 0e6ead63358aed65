package outcomes

import (
	"fmt"
	"slices"

	"postern/proxy"
)

// A Kind is how a login, a session or a connection ended.
type Kind uint8

// The kinds. Their numbers are in what Export returns, so that new ones come last. The
// numbers below Login are those of proxy.Reason: a login was refused for that.
const (
	Login      Kind = iota + 64 // a login was right, and the session began. Detail: the backend
	WrongAgain                  // the guard refused the same wrong password again
	Abandoned                   // the client left before its login was answered

	CertificateRejected    // the client rejected the certificate. Detail: its alert
	TLSVersion             // the client offers only versions of TLS that the listener does not accept. Detail: the profile that accepts it, or none
	TLSCipher              // the same of cipher suites
	TLSProtocol            // the client wants another protocol (ALPN)
	TLSCertificate         // there is no certificate for the name that the client asked for
	TLSTimeout             // the client did not finish its handshake
	TLSClosed              // the client closed the connection in its handshake
	TLSFailed              // all other failures of a handshake. Detail: the error
	NoTLS                  // the client spoke without TLS where TLS comes first
	EarlyTLS               // the client began TLS where STARTTLS comes first
	ClosedAfterCertificate // the client closed the connection after it got the certificate
	Rejected               // a connection was refused before TLS: too many

	EndError            // a session ended with an error. Detail: the error
	EndForbiddenCommand // a session ended because of a command that no session may use
	EndIdleTimeout      // a session ended because the client was silent for too long
	EndKicked           // an operator ended a session
	EndDrain            // a session ended because Postern stopped
	EndBackendClosed    // a backend ended a session of POP3 or submission

	UIDLsChanged     // messages of a POP3 account have other unique-ids than before: clients download them again
	RecordFailed     // the record of unique-ids could not be read or written. Detail: the error
	ListingNotProven // a backend contradicted itself about a mailbox. Detail: the error
	Unreadable       // a backend refuses the sizes of messages: they are listed and cannot be retrieved
	NotOpened        // the password was right, and then the backend or the mailbox could not be used. Detail: the error
	kinds
)

// kindNames has the names of kinds that are no reasons.
var kindNames = map[Kind]string{
	Login: "login", WrongAgain: "wrong_again", Abandoned: "abandoned",
	CertificateRejected: "certificate_rejected", TLSVersion: "tls_version", TLSCipher: "tls_cipher", TLSProtocol: "tls_protocol",
	TLSCertificate: "tls_certificate", TLSTimeout: "tls_timeout", TLSClosed: "tls_closed", TLSFailed: "tls_failed",
	ClosedAfterCertificate: "closed_after_certificate", NoTLS: "no_tls", EarlyTLS: "early_tls", Rejected: "rejected",
	EndError: "end_error", EndForbiddenCommand: "end_forbidden_command", EndIdleTimeout: "end_idle_timeout", EndKicked: "end_kicked",
	EndDrain: "end_drain", EndBackendClosed: "end_backend_closed",
	UIDLsChanged: "uidls_changed", RecordFailed: "record_failed", ListingNotProven: "not_proven", Unreadable: "unreadable",
	NotOpened: "not_opened",
}

// Kinds returns all kinds that an Outcome may have.
func Kinds() (all []Kind) {
	for _, r := range proxy.Reasons() {
		all = append(all, Kind(r))
	}
	for k := Login; k < kinds; k++ {
		all = append(all, k)
	}
	return all
}

// String returns the name of k in JSON; for a refused login that of the proxy.Reason.
func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return proxy.Reason(k).String()
}

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Kind) UnmarshalText(text []byte) error {
	all := Kinds()
	i := slices.IndexFunc(all, func(k Kind) bool { return k.String() == string(text) })
	if i < 0 {
		return fmt.Errorf("%q is not the kind of an outcome", text)
	}
	*k = all[i]
	return nil
}
