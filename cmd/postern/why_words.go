package main

import (
	"cmp"
	"fmt"
	"strings"

	"postern/cmd/postern/internal/service"
	"postern/metrics/outcomes"
	"postern/proxy"
	"postern/proxy/authpolicy"
)

// outcomeWords are the sentences for an outcome: what happened, and what to do. A help
// desk reads them out on the phone. %s in the first is the protocol, and in the second the account.
type outcomeWords struct{ text, advice string }

// whyWords has the sentences for each outcome.
var whyWords = map[outcomes.Kind]outcomeWords{
	outcomes.Login: {"The login succeeded.", ""},

	outcomes.Kind(proxy.Wrong): {
		"The mail server said that the user name or the password is wrong.",
		"type the password anew into the mail program, and compare the user name with the account.",
	},
	outcomes.WrongAgain: {
		"The same wrong password again: the login was refused without asking the mail server.",
		"find the device that still sends an old password; it costs the account nothing.",
	},
	outcomes.Kind(proxy.Malformed): {
		"The mail program sent a user name or a password that no account can have.",
		"type both anew into the mail program, without spaces before or after them.",
	},
	outcomes.Kind(proxy.Unsupported): {
		"The mail program asked for a way to log in that is not offered here.",
		`set the authentication of the mail program to "normal password".`,
	},
	outcomes.Kind(proxy.ProtocolOff): {
		"The password was right, but this account may not use %s.",
		"policy.file switches it off: change the mail program to another protocol, or that file.",
	},
	outcomes.Kind(proxy.POP3Ended): {
		"The password was right, but POP3 is switched off: %s.",
		"set up the account with IMAP in the mail program (docs/support.md says how to tell the user), or give it a later day in policy.file.",
	},
	outcomes.Kind(proxy.Suspended): {
		"The mail server said that the account is suspended or expired, or the password of a device is not for this protocol, network or day.",
		"look at the account at the mail server; the detail names a device, and postern password list its limits.",
	},
	outcomes.Kind(proxy.Unusable): {
		"The password was right, but the mailbox lacks what %s needs.",
		"the detail says what the mail server does not offer.",
	},
	outcomes.Kind(proxy.Plaintext): {
		"The mail program tried to log in without encryption, which is refused.",
		"set the mail program to SSL/TLS (IMAP 993, POP3 995, sending mail 465), or to STARTTLS (filters 4190). Then change the password: it may have been sent in the clear.",
	},
	outcomes.Kind(proxy.Throttled): {
		"The password was not checked: %s.",
		"find the device that sends a wrong password, then: postern guard unlock %s.",
	},
	outcomes.Kind(proxy.TooMany): {
		"The login was refused: too many connections at once.",
		"nothing at the mail program: it tries again. If it goes on: limits.max_connections, limits.network_connections in the configuration.",
	},
	outcomes.Kind(proxy.TooManySessions): {
		"The login was refused: the account has too many sessions at once, from this network or at its mail server (account_connections).",
		"close mail programs that are not needed, or raise limits.account_sessions or backends.X.account_connections. postern sessions --account %s lists them.",
	},
	outcomes.Kind(proxy.Unavailable): {
		"The login was refused temporarily: the mail server was away, or could not say whether the password is right.",
		"nothing at the mail program: it tries again. postern check --probe says what is wrong with the mail server.",
	},
	outcomes.Kind(proxy.Maintenance): {
		"The login was refused temporarily: the mail server said that there is maintenance.",
		"nothing at the mail program: it tries again.",
	},
	outcomes.Kind(proxy.MailboxFull): {
		"The login was refused temporarily: the mailbox is too full to be used.",
		"delete mail by webmail, or give the account more room at the mail server.",
	},
	outcomes.Kind(proxy.TooSoon): {
		"The login was refused temporarily: the account had logged in a moment before.",
		"let the mail program ask for mail less often.",
	},
	outcomes.Kind(proxy.InUse): {
		"The login was refused temporarily: another POP3 session has the mailbox open.",
		"wait until it has ended, or end it: postern kick --protocol pop3 --account %s",
	},
	outcomes.Kind(proxy.TimedOut): {
		"The mail program was silent for too long, and the connection was closed.",
		"try again; if it goes on, look at the network, or at a virus scanner on the computer.",
	},
	outcomes.Kind(proxy.ShuttingDown): {
		"The login was refused temporarily: Postern was being stopped.",
		"nothing: the mail program tries again.",
	},
	outcomes.Kind(proxy.Kicked): {
		"An operator ended the connection.",
		"ask who did it, and why: the log has \"control request\".",
	},
	outcomes.Kind(proxy.Internal): {
		"The login was refused temporarily because of a bug in Postern.",
		"report the line \"panic\" of the log.",
	},
	outcomes.Abandoned: {
		"The mail program closed the connection before its login was answered.",
		"give the mail program a longer timeout; if it goes on, look whether logins are slow (postern status).",
	},

	outcomes.CertificateRejected: {
		"The mail program did not accept the certificate of this server: %s.",
		"postern certs shows whether the certificate is valid for the name that the mail program uses; if it is, compare the server name in the mail program, the date of the computer, and its virus scanner.",
	},
	outcomes.TLSVersion: {
		"The mail program is too old: it has no version of TLS that is accepted here.",
		"update the program or the system; a listener for old devices: docs/tls.md.",
	},
	outcomes.TLSCipher: {
		"The mail program is too old: it has no encryption (cipher suite) that is accepted here.",
		"update the program or the system; a listener for old devices: docs/tls.md.",
	},
	outcomes.TLSProtocol: {
		"The program wanted another service than %s at this port.",
		"compare server and port in the mail program: IMAP 993, POP3 995, sending mail 465, filters (ManageSieve) 4190.",
	},
	outcomes.TLSCertificate: {
		"There is no certificate for the server name that the mail program uses.",
		"compare the server name in the mail program with postern certs.",
	},
	outcomes.TLSTimeout: {
		"The mail program did not finish the TLS handshake in time.",
		"try again, in another network if it goes on; a virus scanner or firewall may hold it.",
	},
	outcomes.ClosedAfterCertificate: {
		"The mail program closed the connection when it got the certificate of this server, and did not say why.",
		"if no login follows, it did not accept the certificate: compare the server name in the mail program with postern certs, and the date of the computer.",
	},
	outcomes.TLSClosed: {
		"The mail program closed the connection at the beginning of the TLS handshake.",
		"nothing, if a login follows. If none does: compare server and port in the mail program.",
	},
	outcomes.TLSFailed: {
		"The TLS handshake failed.",
		"the detail says what was odd; update the mail program.",
	},
	outcomes.NoTLS: {
		"The mail program did not encrypt the connection, and no password was accepted.",
		"set the mail program to SSL/TLS (not STARTTLS, not \"none\"): IMAP 993, POP3 995, sending mail 465. Filters (ManageSieve): STARTTLS, port 4190.",
	},
	outcomes.EarlyTLS: {
		"The mail program began with SSL/TLS at a port where STARTTLS comes first.",
		"set the mail program to STARTTLS for this port (filters: 4190), or to a port for SSL/TLS: IMAP 993, POP3 995, sending mail 465.",
	},
	outcomes.Rejected: {
		"The connection was refused: too many connections at once, from this network or in all.",
		"close mail programs that are not needed. If many people share the address: trusted_networks.",
	},

	outcomes.EndError: {
		"A session that was logged in ended with an error.",
		"nothing, if it was once: the mail program connects again. The log has more of this session.",
	},
	outcomes.EndForbiddenCommand: {
		"A session ended: the mail program used a command that is not permitted here.",
		"look at the settings of the mail program for compression; the log names the command.",
	},
	outcomes.EndIdleTimeout: {
		"A session ended because the mail program was silent for too long.",
		"nothing: the mail program connects again.",
	},
	outcomes.EndKicked: {
		"An operator ended a session.",
		"ask who did it, and why: the log has \"control request\".",
	},
	outcomes.EndDrain: {
		"A session ended because Postern was stopped.",
		"nothing: the mail program connects again.",
	},
	outcomes.EndBackendClosed: {
		"The mail server closed a session.",
		"nothing, if it was once: the mail program connects again. The log of the mail server says why.",
	},

	outcomes.UIDLsChanged: {
		"Some messages have another POP3 unique id than before: the mail program downloads them once more.",
		"postern uidl history %s shows what changed; docs/uidl.md has the causes.",
	},
	outcomes.RecordFailed: {
		"Postern could not read or write what it records of this POP3 mailbox.",
		"postern state check says whether the state is damaged.",
	},
	outcomes.ListingNotProven: {
		"The mail server contradicted itself about the messages in this mailbox: the login was refused temporarily.",
		"nothing, if it was once. If it goes on, the mailbox's index at the mail server is damaged.",
	},
	outcomes.Unreadable: {
		"The mail server cannot say the sizes of some messages: POP3 lists them and cannot deliver them.",
		"repair the mailbox's index at the mail server.",
	},
	outcomes.NotOpened: {
		"The password was right, but then the mailbox could not be opened: the login was refused temporarily.",
		"nothing at the mail program: it tries again. The detail says what was wrong; postern status says whether it still is.",
	},
}

// bucketWords has the words for what was empty or full when the guard refused a login.
var bucketWords = map[string]string{
	"known_good":    "too many wrong passwords for this account came from this network, which the account uses",
	"pair":          "too many wrong passwords for this account came from this network",
	"network":       "too many wrong passwords for all accounts came from this network",
	"network_24":    "too many wrong passwords came from the networks around this one (/24)",
	"network_56":    "too many wrong passwords came from the networks around this one (/56)",
	"network_48":    "too many wrong passwords came from the networks around this one (/48)",
	"account":       "too many wrong passwords for this account came from networks that it does not use",
	"consecutive":   "the account has had too many wrong passwords since its last login",
	"oauth":         "too many refused OAuth tokens came from this network",
	"strangers":     "too many logins of this account are being checked at once from networks that it does not use",
	"attempts":      "too many logins are being checked at once (limits.attempts)",
	"sessions":      "the account has too many sessions from this network (limits.account_sessions)",
	"connections":   "there are too many connections from this network",
	"logins":        "there are too many connections from this network that are not logged in",
	"policy_server": "the policy server (guard.policy) refused it",
}

// limitWords returns the words for a bucket of the guard.
func limitWords(bucket string) string { return cmp.Or(bucketWords[bucket], "limit "+bucket) }

// alertWords has the words for the TLS alerts by which a client rejects a certificate.
var alertWords = map[string]string{
	"bad_certificate":                 "it says that the certificate is not valid, often because of the server name",
	"unsupported_certificate":         "it cannot use this kind of certificate",
	"certificate_revoked":             "it says that the certificate was revoked",
	"certificate_expired":             "it says that the certificate has expired",
	"certificate_unknown":             "it says only that the certificate is not accepted",
	"unknown_ca":                      "it does not know the authority that issued the certificate",
	"access_denied":                   "its user, or the system, distrusts the certificate",
	"bad_certificate_status_response": "it does not accept the proof that the certificate was not revoked (OCSP)",
}

// What to do about wrong passwords from a network that the account does not use depends
// on who is there.
const (
	ifTheUser = "if the user is in that network: "
	ifNot     = " If not, somebody guesses, and the login guard limits that."
)

// wordsOf returns what happened, and what to do; advice is empty if there is nothing to do.
func wordsOf(o service.WhyOutcome, account string) (text, advice string) {
	w, ok := whyWords[o.Outcome]
	if !ok { // of another version of Postern
		return o.Outcome.String() + ".", "look at the lines of this session in the log."
	}
	text, advice = w.text, w.advice
	limit, limited := bucketWords[o.Detail]
	switch {
	case o.Outcome == outcomes.Kind(proxy.Unavailable) && limited && o.Detail != authpolicy.Bucket:
		text = "The login was refused temporarily: it waited too long for other logins, which the mail server was still checking."
		advice = "nothing at the mail program: it tries again. If it goes on, the mail server is slow: postern status shows how long logins take there."
	case o.Outcome == outcomes.CertificateRejected:
		text = fmt.Sprintf(text, cmp.Or(alertWords[o.Detail], cmp.Or(o.Detail, "it does not say why")))
	case o.Outcome == outcomes.Kind(proxy.Throttled):
		text = fmt.Sprintf(text, cmp.Or(limit, cmp.Or(o.Detail, "there were too many wrong passwords")))
	case o.Outcome == outcomes.Kind(proxy.POP3Ended):
		text = fmt.Sprintf(text, cmp.Or(o.Detail, "its last day is over"))
	case strings.Contains(text, "%s"):
		text = fmt.Sprintf(text, protocolName(o.Protocol))
	case o.Detail == authpolicy.Bucket && o.Outcome != outcomes.Login:
		text, advice = "The login was refused: "+limit+".", "ask whoever runs the policy server."
	case (o.Outcome == outcomes.TLSVersion || o.Outcome == outcomes.TLSCipher) && o.Detail != "" && o.Detail != "none":
		text += " The TLS profile " + o.Detail + " would accept it."
	}
	if strings.Contains(advice, "%s") {
		advice = fmt.Sprintf(advice, account)
	}
	if !o.Own && (o.Outcome == outcomes.Kind(proxy.Wrong) || o.Outcome == outcomes.Kind(proxy.Throttled)) {
		advice = ifTheUser + advice + ifNot
	}
	return text, advice
}

// protocolName returns how people write a protocol.
func protocolName(protocol string) string {
	switch protocol {
	case proxy.IMAP:
		return "IMAP"
	case proxy.POP3:
		return "POP3"
	case proxy.Submission:
		return "SMTP submission"
	case proxy.Sieve:
		return "ManageSieve"
	}
	return protocol
}

// saysDetail reports whether the words of an outcome say its detail.
func saysDetail(o service.WhyOutcome) bool {
	switch o.Outcome {
	case outcomes.CertificateRejected, outcomes.TLSVersion, outcomes.TLSCipher, outcomes.Login, outcomes.Kind(proxy.Throttled), outcomes.Kind(proxy.POP3Ended):
		return true
	}
	return bucketWords[o.Detail] != ""
}
