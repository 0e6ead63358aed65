package backend

import (
	"fmt"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// imapVerdict reads the answer to credentials. The server's text may repeat
// them: it goes nowhere.
func (s *Server) imapVerdict(r wire.Response) error {
	if r.Name == "OK" {
		return nil
	}
	code := r.CodeName()
	err := fmt.Errorf("the server answered the login with %s [%s]", r.Name, shorten(code))
	if code == "PRIVACYREQUIRED" {
		err = fmt.Errorf("%w: use TLS, or let it trust Postern's address", err)
	}
	reason := proxy.Unavailable
	if r.Name == "NO" {
		reason = imapReason(code)
	}
	return s.refuse(reason, err)
}

// imapReason reads the codes of RFC 5530 section 3. See the package's doc.
func imapReason(code string) proxy.Reason {
	switch code {
	case "", "ALERT", "AUTHENTICATIONFAILED": // ALERT says nothing about the reason: RFC 9051 section 7.1
		return proxy.Wrong
	case "AUTHORIZATIONFAILED", "EXPIRED", "CONTACTADMIN":
		return proxy.Suspended
	case "OVERQUOTA":
		return proxy.MailboxFull
	case "LIMIT":
		return proxy.TooMany
	case "INUSE":
		return proxy.InUse
	}
	return proxy.Unavailable
}

// smtpVerdict reads the reply to credentials. The server's text may repeat
// them: it goes nowhere.
func (s *Server) smtpVerdict(r wire.Reply) error {
	if r.Code == 235 {
		return nil
	}
	status := enhancedStatus(r)
	return s.refuse(smtpReason(r.Code, status), fmt.Errorf("the server answered the login with %d %s", r.Code, status))
}

// smtpReason reads the codes of RFC 4954 section 6 and those of RFC 3463 and
// RFC 5248. See the package's doc.
func smtpReason(code int, status string) proxy.Reason {
	_, detail, _ := strings.Cut(status, ".")
	permanent := code/100 == 5
	switch {
	case detail == "2.2":
		return proxy.MailboxFull
	case detail == "3.2" && !permanent:
		return proxy.Maintenance
	case permanent && (code == 525 || detail == "7.13" || detail == "2.1"):
		return proxy.Suspended
	case permanent && !aboutUs(code):
		return proxy.Wrong
	}
	return proxy.Unavailable
}

// enhancedStatus returns the status code of RFC 3463 in a reply, or "".
func enhancedStatus(r wire.Reply) string {
	status, _, _ := strings.Cut(r.Lines()[0], " ")
	const longest = len("5.999.999")
	odd := func(c rune) bool { return c != '.' && (c < '0' || c > '9') }
	if len(status) > longest || strings.Count(status, ".") != 2 || strings.ContainsFunc(status, odd) {
		return ""
	}
	return status
}

// aboutUs reports whether a permanent code blames how Postern asks, not the
// credentials: RFC 4954 sections 4 and 6, RFC 5248 section 2.4, RFC 7504.
func aboutUs(code int) bool {
	switch code {
	case 500, 501, 502, 503, 504, 521, 523, 530, 534, 538:
		return true
	}
	return false
}

func (s *Server) refuse(reason proxy.Reason, err error) *proxy.Refusal {
	return proxy.Refuse(reason, fmt.Errorf("backend %s, %s: %w", s.Name, s.Protocol, err))
}
