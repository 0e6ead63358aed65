package metrics

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"

	"postern/proxy"
)

// Observe implements proxy.Observer.
func (m *Metrics) Observe(e proxy.Event) {
	switch e := e.(type) {
	case proxy.Accepted:
		m.accepted.of(e.Client.Service, e.Client.Protocol).Inc()
		m.open.of(e.Client.Service, e.Client.Protocol).Inc()
	case proxy.AcceptFailed:
		m.acceptErrors.of(e.Service).Inc()
	case proxy.Rejected:
		m.rejected.of(e.Client.Service, proxy.RejectionOf(e.Err)).Inc()
	case proxy.Handshake:
		m.handshake(e)
	case proxy.CertificateRejected:
		m.rejections.of(e.Client.Service, e.Alert).Inc()
		m.verdicts.add(e.Client, rejected)
	case proxy.Attempt:
		m.attempt(e)
	case proxy.Opened:
		m.active.of(e.Client.Protocol).Inc()
	case proxy.Closed:
		m.closed(e)
	case proxy.Dialed:
		m.dials.of(e.Backend, e.Result).Inc()
		if e.Result == proxy.DialOK {
			m.dialTime.of(e.Backend).Observe(e.Duration.Seconds())
		}
	case proxy.BackendLogin:
		m.loginTime.of(e.Backend, e.Protocol).Observe(e.Duration.Seconds())
		// net.ErrClosed: Postern has closed the connection because the client left.
		if reason := proxy.ReasonOf(e.Err); reason.Temporary() && reason != 0 && !errors.Is(e.Err, net.ErrClosed) {
			m.failures.of(e.Backend, e.Protocol, reason.String()).Inc()
		}
	case proxy.AccountQueued:
		m.queued.of(e.Backend, e.Protocol, e.Result).Inc()
		if e.Result != proxy.QueueThrottled {
			m.queueTime.of(e.Backend, e.Protocol).Observe(e.Duration.Seconds())
		}
	case proxy.AccountThrottled:
		m.throttled.of(e.Backend, e.Protocol).Inc()
	case proxy.Probed:
		m.up.of(e.Backend, e.Protocol).Set(number(e.Up))
	case proxy.Identified:
		m.identified.of(e.Backend, e.Protocol).Set(number(e.OK))
	case proxy.MaildropOpened:
		m.loadTime.of(e.Source).Observe(e.Duration.Seconds())
		m.maildrop.of().Observe(float64(e.Messages))
	case proxy.POP3Command:
		m.command(e)
	case proxy.MessageSent:
		m.message(e)
	case proxy.MaildropNoticed:
		m.noticed(e)
	case proxy.MailboxChanged:
		if !e.Repeated && !e.Accepted {
			m.changed.of(e.Backend, e.Kind).Inc()
		}
		if e.Refused {
			m.braked.of(e.Backend).Inc()
		}
	case proxy.BrakeChanged:
		m.brake.of(e.Backend).Set(number(e.On))
	case proxy.ListingRefused:
		m.unlisted.of(e.Reason).Inc()
	case proxy.Reconnected:
		m.reconnects.of(e.Backend, e.Cause, e.Result).Inc()
		m.failures.of(e.Backend, proxy.IMAP, e.Cause).Inc()
	case proxy.UIDLsLearnt:
		m.learnt.of(e.Backend, result(e.Err == nil)).Inc()
	case proxy.ShadowCompared:
		m.shadowed(e)
	case proxy.PasswordChecked:
		m.passwords.of(e.Store, proxy.ResultOf(e.Err)).Inc()
		m.passwordTime.of(e.Store).Observe(e.Duration.Seconds())
	case proxy.TokenRequested:
		m.tokens.of(e.Provider, e.Result).Inc()
		m.tokenTime.of(e.Provider).Observe(e.Duration.Seconds())
	case proxy.Routed:
		m.lookups.of(e.Source, e.Result).Inc()
		m.lookupTime.of(e.Source).Observe(e.Duration.Seconds())
	case proxy.IMAPCommand:
		m.imapCommands.of(e.Command, e.Result).Inc()
		m.imapCommandTime.of(e.Command).Observe(e.Duration.Seconds())
	case proxy.StateUsed:
		m.stored.of(e.Store, e.Operation, result(e.Err == nil)).Inc()
		m.storedTime.of(e.Store, e.Operation).Observe(e.Duration.Seconds())
	case proxy.UpdateFailed:
		m.updateFailures.of(e.Stage).Inc()
	case proxy.CertificateObtained:
		m.issues.of(operation(e.Renewal), resultOK).Inc()
		m.issueTime.of(operation(e.Renewal)).Observe(e.Duration.Seconds())
	case proxy.CertificateFailed:
		m.issues.of(operation(e.Renewal), resultError).Inc()
		m.issueTime.of(operation(e.Renewal)).Observe(e.Duration.Seconds())
	case proxy.CertificateDenied:
		m.denials.of(e.Reason).Inc()
	case proxy.PolicyRequested:
		m.policy.of(e.Command, e.Result).Inc()
		m.policyTime.of(e.Command).Observe(e.Duration.Seconds())
	case proxy.Panicked:
		m.panics.of().Inc()
	}
}

// shadowed counts a comparison, and the messages that differ.
func (m *Metrics) shadowed(e proxy.ShadowCompared) {
	m.compared.of(e.Backend, e.Result).Inc()
	for kind, n := range map[string]int{"missing": e.Missing, "extra": e.Extra, "uidl": e.UIDLs, "size": e.Sizes, "order": e.Order} {
		m.differences.of(e.Backend, kind).Add(float64(n))
	}
	m.shadowLearnt.of(e.Backend).Add(float64(e.Learnt))
}

// operation returns the value of the label operation.
func operation(renewal bool) string {
	if renewal {
		return "renew"
	}
	return "obtain"
}

// handshake counts the end of a TLS handshake.
func (m *Metrics) handshake(e proxy.Handshake) {
	reason := cmp.Or(e.Reason, none)
	if e.Result == proxy.HandshakeError {
		reason = cmp.Or(e.Reason, proxy.NoOther)
	}
	m.handshakes.of(e.Client.Service, version(e.Version), e.Result, reason).Inc()
	if e.Result != proxy.HandshakeOK {
		return
	}
	m.handshakeTime.of(e.Client.Service).Observe(e.Duration.Seconds())
	m.verdicts.add(e.Client, accepted)
	if state := e.Client.TLS; state != nil {
		m.negotiated.of(version(state.Version), strconv.FormatBool(state.DidResume)).Inc()
		m.needed.of(e.Client.Service, proxy.ProfileOf(state).String()).Inc()
	}
}

// version returns the value of the label version.
func version(v uint16) string {
	if v == 0 {
		return none
	}
	return strings.TrimPrefix(tls.VersionName(v), "TLS ")
}

// timedResults are the results of attempts that guard or backend were asked about.
var timedResults = [...]string{proxy.ResultOK, proxy.ResultWrong, proxy.ResultTemporary, proxy.ResultThrottled}

// attempt counts an attempt to log in.
func (m *Metrics) attempt(e proxy.Attempt) {
	m.decision(e.Decision)
	result := proxy.ResultOf(e.Err)
	m.attempts.of(e.Client.Protocol, e.Via, result).Inc()
	if proxy.ReasonOf(e.Err) == proxy.POP3Ended {
		m.pop3Ended.of().Inc()
	}
	if slices.Contains(timedResults[:], result) {
		m.attemptTime.of(e.Client.Protocol, result).Observe(e.Duration.Seconds())
	}
}

// closed counts the end of a connection.
func (m *Metrics) closed(e proxy.Closed) {
	protocol := e.Client.Protocol
	m.open.of(e.Client.Service, protocol).Dec()
	if errors.Is(e.Err, proxy.ErrUnexpectedProxyHeader) {
		m.rejected.of(e.Client.Service, proxy.RejectUnexpectedHeader).Inc()
	}
	m.connectionTime.of(protocol).Observe(e.Duration.Seconds())
	m.received.of(protocol).Add(float64(e.Received))
	m.sent.of(protocol).Add(float64(e.Sent))
	if e.Account == "" { // never logged in
		return
	}
	m.active.of(protocol).Dec()
	m.sessions.of(protocol, e.End).Inc()
	if protocol == proxy.Submission && e.End == proxy.EndBackendClosed {
		m.failures.of(e.Backend, protocol, proxy.LostClosed).Inc()
	}
	if protocol == proxy.POP3 {
		m.deleted.of().Add(float64(e.Totals.Deleted))
	}
}

// result returns resultOK or resultError.
func result(ok bool) string {
	if ok {
		return resultOK
	}
	return resultError
}

// command counts a POP3 command.
func (m *Metrics) command(e proxy.POP3Command) {
	m.commands.of(e.Command, result(e.OK)).Inc()
	m.commandTime.of(e.Command).Observe(e.Duration.Seconds())
}

// noticed counts a notice about a maildrop.
func (m *Metrics) noticed(e proxy.MaildropNoticed) {
	m.notices.of(e.Kind).Inc()
	if e.Kind == proxy.NoticeRenumbered {
		m.renumbered.of().Inc()
		m.uidlsChanged.of().Add(float64(e.Messages))
	}
}

// message counts a message that POP3 has delivered.
func (m *Metrics) message(e proxy.MessageSent) {
	m.retrieved.of(e.Command).Inc()
	if e.Completed {
		m.completed.of().Inc()
	}
	if e.Command != "RETR" { // TOP sends a part
		return
	}
	m.messageSize.of().Observe(float64(e.Octets))
	if e.Mismatched {
		m.mismatches.of().Inc()
	}
}
