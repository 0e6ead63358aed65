package token

import (
	"time"
)

// A Status is the state of a Provider as far as its requests have shown it. The zero value
// is that of a Provider that nobody has asked.
type Status struct {
	Last  time.Time // when a token came last; zero: none came yet
	Fault *Fault    // Temporary or Configuration: why no token came; nil: the last request was answered
	Since time.Time // since when no token came; zero without a Fault
	Asked time.Time // when the last request ended; zero: none did
}

// Known reports whether the authorization server was asked.
func (s Status) Known() bool { return !s.Asked.IsZero() }

// Misconfigured reports whether the application or its key is at fault.
func (s Status) Misconfigured() bool { return s.Fault != nil && s.Fault.Class == Configuration }

// Status returns the state of p.
func (p *Provider) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Tokens returns the number of tokens that are valid now. Tokens looks at each of them.
func (p *Provider) Tokens() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, e := range p.entries {
		if e.secret != nil && now.Before(e.expires) {
			n++
		}
	}
	return n
}

// note keeps the result of a request for e, whose subject is subject. p.mu is locked.
func (p *Provider) note(e *entry, subject string, fault *Fault) {
	s := &p.status
	s.Asked = time.Now()
	switch {
	case fault == nil:
		s.Last = s.Asked
	case fault.Class != Account:
		if s.Fault == nil {
			s.Since = s.Asked
		}
		s.Fault = fault
		p.failed, p.failedSubject = e, subject
		return
	case s.Misconfigured(): // the answer is about one mailbox: it says nothing of the application
		return
	}
	s.Fault, s.Since, p.failed = nil, time.Time{}, nil
}

// Look requests a token so that the Status is true although nobody logs in: one that did
// not come, unless it is too early for that; or the first one, if it is for all mailboxes.
// It does not wait for the answer.
func (p *Provider) Look() {
	p.init()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := p.failed; {
	case e != nil && e.blocked(p, time.Now()) == nil:
		p.start(e, p.failedSubject)
	case !p.status.Known() && !p.Grant.perMailbox():
		p.start(p.entryFor(""))
	}
}
