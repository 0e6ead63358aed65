package outcomes

import (
	"cmp"
	"errors"
	"net/url"
	"strings"
	"time"
	"unicode"

	"postern/proxy"
)

// Observe implements proxy.Observer.
func (m *Memory) Observe(e proxy.Event) {
	switch e := e.(type) {
	case proxy.Attempt:
		m.attempt(&e)
	case proxy.Closed:
		m.closed(&e)
	case proxy.Handshake:
		m.handshake(&e)
	case proxy.CertificateRejected:
		m.ofNetwork(CertificateRejected, &e.Client, e.Alert)
	case proxy.Rejected:
		if proxy.ReasonOf(e.Err) == proxy.TooMany {
			m.ofNetwork(Rejected, &e.Client, "")
		}
	case proxy.MaildropNoticed:
		m.noticed(&e)
	}
}

func (m *Memory) attempt(e *proxy.Attempt) {
	name := cmp.Or(e.Account, e.User)
	if name == "" {
		return
	}
	kind, detail := Login, e.Backend
	if e.Err != nil {
		kind, detail = m.refused(e, name)
	}
	m.add(outcome{
		name: name, kind: kind, client: &e.Client, detail: detail,
		own: e.Err == nil || e.Decision.Tier == ownTier, known: e.Err == nil || m.Known != nil && m.Known(name),
	})
}

// ownTier is the proxy.Decision.Tier of a network from which the account has logged in
// lately.
const ownTier = "known_good"

func (m *Memory) refused(e *proxy.Attempt, name string) (Kind, string) {
	r, ok := errors.AsType[*proxy.Refusal](e.Err)
	switch {
	case !ok:
		return Abandoned, ""
	case r.Reason == proxy.Wrong && e.Decision.Repeat:
		return WrongAgain, ""
	case e.Decision.Bucket != "" && !e.Decision.DryRun:
		return Kind(r.Reason), e.Decision.Bucket
	case r.Reason == proxy.Unavailable && r.Verified:
		return NotOpened, detailOf(r.Err, &e.Client, name, e.User)
	}
	return Kind(r.Reason), detailOf(r.Err, &e.Client, name, e.User)
}

func (m *Memory) closed(e *proxy.Closed) {
	if e.Account == "" {
		return
	}
	var kind Kind
	switch e.End {
	case proxy.EndError:
		kind = EndError
	case proxy.EndForbiddenCommand:
		kind = EndForbiddenCommand
	case proxy.EndIdleTimeout:
		kind = EndIdleTimeout
	case proxy.EndKicked:
		kind = EndKicked
	case proxy.EndDrain:
		kind = EndDrain
	case proxy.EndBackendClosed:
		if e.Client.Protocol == proxy.IMAP || e.Client.Protocol == proxy.Sieve { // so it ends after LOGOUT
			return
		}
		kind = EndBackendClosed
	default:
		return
	}
	detail := ""
	if kind == EndError {
		detail = detailOf(e.Err, &e.Client, e.Account)
	}
	m.ofSession(e.Account, kind, &e.Client, detail)
}

// ofSession adds an outcome of an account that is logged in.
func (m *Memory) ofSession(account string, k Kind, c *proxy.Client, detail string) {
	m.add(outcome{name: account, kind: k, client: c, detail: detail, own: true, known: true})
}

func (m *Memory) noticed(e *proxy.MaildropNoticed) {
	kind, ok := map[string]Kind{
		proxy.NoticeChanged: UIDLsChanged, proxy.NoticeRenumbered: UIDLsChanged, proxy.NoticeRecomputed: UIDLsChanged,
		proxy.NoticeRecord: RecordFailed, proxy.NoticeNotProven: ListingNotProven, proxy.NoticeUnreadable: Unreadable,
	}[e.Kind]
	if ok && e.Account != "" {
		m.ofSession(e.Account, kind, &e.Client, detailOf(e.Err, &e.Client, e.Account))
	}
}

func (m *Memory) handshake(e *proxy.Handshake) {
	kind, detail := TLSFailed, ""
	switch e.Result {
	case proxy.HandshakeOK, proxy.HandshakeChallenge, proxy.HandshakeSilent: // silent: nobody says that it is a mail client
		return
	case proxy.HandshakeTimeout:
		kind = TLSTimeout
	case proxy.HandshakeClientAbort:
		switch e.Reason {
		case proxy.RejectedCertificate: // CertificateRejected follows
			return
		case proxy.LeftAfterCertificate:
			kind = ClosedAfterCertificate
		default:
			kind = TLSClosed
		}
	case proxy.HandshakeBadProtocol:
		kind = NoTLS
	case proxy.HandshakeEarly:
		kind = EarlyTLS
	default:
		switch e.Reason {
		case proxy.NoVersion:
			kind, detail = TLSVersion, cmp.Or(e.Needs, "none")
		case proxy.NoCipher:
			kind, detail = TLSCipher, cmp.Or(e.Needs, "none")
		case proxy.NoProtocol:
			kind = TLSProtocol
		case proxy.NoCertificate:
			kind = TLSCertificate
		default:
			detail = detailOf(e.Err, &e.Client)
		}
	}
	m.ofNetwork(kind, &e.Client, detail)
}

// ofNetwork adds a failure without an account.
func (m *Memory) ofNetwork(k Kind, c *proxy.Client, detail string) {
	if m.KnownNetwork == nil || !m.KnownNetwork(c.Addr.Addr()) {
		return
	}
	r := newRecord(k, c, time.Now())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addToNetwork(r, detail)
	m.send(tableNetworks, r.network, r, detail)
}

// addToNetwork adds a record of a failure without an account.
func (m *Memory) addToNetwork(r record, detail string) {
	r.detail = m.detailsOf(tableNetworks, r.kind).number(detail)
	m.networks.add(r.network, r)
}

// An outcome is an Outcome that has just happened.
type outcome struct {
	name   string // of an account, or as typed
	kind   Kind
	client *proxy.Client
	detail string
	own    bool // from a network of the account
	known  bool // the account has logged in before
}

// add adds an outcome of an account, or of a name that is none.
func (m *Memory) add(o outcome) {
	h := m.hash(o.name)
	r := newRecord(o.kind, o.client, time.Now())
	if o.own {
		r.flags |= own
	}
	number := tableNames
	if o.known {
		number = tableAccounts
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addRecord(h, r, o.detail, o.known)
	m.send(number, h, r, o.detail)
}

// addRecord adds a record. A name that has become an account takes its records along.
func (m *Memory) addRecord(h uint64, r record, detail string, known bool) {
	if !known && m.accounts.get(h) == nil {
		r.detail = m.detailsOf(tableNames, r.kind).number(detail)
		m.names.add(h, r)
		return
	}
	toAccount := func(r record, detail string) {
		r.detail = m.detailsOf(tableAccounts, r.kind).number(detail)
		m.accounts.add(h, r)
	}
	for _, before := range m.names.get(h) {
		toAccount(before, m.detailsOf(tableNames, before.kind).get(before.detail))
	}
	m.names.remove(h)
	toAccount(r, detail)
}

// maxDetail is the longest detail, in octets. Its length has to fit into one octet: see
// appendRecord.
const maxDetail = 240

// detailOf returns an error as one short line that is the same for the same cause: without
// names, without the client's address, and without ports of this machine.
func detailOf(err error, c *proxy.Client, names ...string) string {
	if err == nil {
		return ""
	}
	text := withoutLocalAddress(err.Error())
	if a := c.Addr; a.IsValid() && !a.Addr().IsLoopback() {
		text = strings.ReplaceAll(strings.ReplaceAll(text, a.String(), "CLIENT"), a.Addr().String(), "CLIENT")
	}
	for _, name := range names {
		if name != "" {
			text = strings.ReplaceAll(strings.ReplaceAll(text, name, "ACCOUNT"), url.QueryEscape(name), "ACCOUNT")
		}
	}
	if len(text) > maxDetail {
		text = text[:maxDetail-len("...")] + "..."
	}
	return printable(text)
}

// printable returns text with a question mark for each character that is not printable.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// withoutLocalAddress returns the text of an error without the addresses of this machine:
// package net writes "read tcp 10.0.0.1:39251->10.0.0.5:993", with another port each time.
func withoutLocalAddress(text string) string {
	for range 8 {
		arrow := strings.Index(text, "->")
		if arrow < 0 {
			break
		}
		word := strings.LastIndexByte(text[:arrow], ' ') + 1
		text = text[:word] + text[arrow+len("->"):]
	}
	return text
}
