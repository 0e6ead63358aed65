package guard

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// A PolicyServer is a server that judges attempts from outside, such as wforce.
// It is asked by Dovecot's auth-policy protocol: whether to allow an attempt,
// before the backend is asked and again when that has called the password
// right, and it is told how each ended. The fields must not change once it is
// in use.
type PolicyServer struct {
	URL          string        // http or https; "?command=allow", or after a final & "command=allow", is added
	Header       *proxy.Secret // "Name: value", or the value of X-API-Key; nil: none
	Nonce        []byte        // of the passwords' hashes, the same for all who ask the server; nil: one of our own
	Timeout      time.Duration // of a question; 0: 2 s
	RejectOnFail bool          // no answer refuses
	LogOnly      bool          // observers are told, and nothing else
	Observer     proxy.Observer

	once            sync.Once
	transport       http.RoundTripper // nil: one of its own
	client          *http.Client
	asking, telling chan struct{} // as many at once
}

const (
	policyTimeout  = 2 * time.Second
	policyAtOnce   = 64      // questions, and reports; more questions wait, within their timeout
	maxPolicyReply = 4 << 10 // octets
	maxDevice      = 256     // octets of a client's ID
	maxTarpit      = 30 * time.Second
	policyBucket   = "policy_server"
)

// ErrPolicyServer is in the tree of the error of an attempt that the policy
// server refused.
var ErrPolicyServer = errors.New("the policy server refuses")

// A question is what the policy server hears about an attempt. The last fields
// are of reports alone.
type question struct {
	Login     string `json:"login"`
	Remote    string `json:"remote"`
	PwHash    string `json:"pwhash"`
	Device    string `json:"device_id"`
	Protocol  string `json:"protocol"`
	SessionID string `json:"session_id"`
	TLS       bool   `json:"tls"`

	Success *bool  `json:"success,omitempty"`
	Reject  *bool  `json:"policy_reject,omitempty"`
	Fail    string `json:"fail_type,omitempty"`
}

func (s *PolicyServer) open() {
	if s.transport == nil {
		s.transport = &http.Transport{
			MaxConnsPerHost:        2 * policyAtOnce,
			MaxIdleConnsPerHost:    policyAtOnce,
			IdleConnTimeout:        10 * time.Second,
			MaxResponseHeaderBytes: 16 << 10,
		}
	}
	s.client = &http.Client{
		Transport:     s.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.asking, s.telling = make(chan struct{}, policyAtOnce), make(chan struct{}, policyAtOnce)
	if s.Nonce == nil {
		s.Nonce = make([]byte, 32)
		_, _ = rand.Read(s.Nonce) // never fails
	}
}

// question makes what the server hears about l.
func (s *PolicyServer) question(l *proxy.Login) *question {
	return &question{
		Login: l.Account, Remote: l.Client.Addr.Addr().Unmap().String(), PwHash: s.hash(l), Device: deviceOf(l.Hello.ID),
		Protocol: l.Client.Protocol, SessionID: l.Client.ID, TLS: l.Client.TLS != nil,
	}
}

// hash returns 12 bits of a hash, as Dovecot does: equal passwords of an account
// are recognised, and little is told of them. Tokens are another each time, and
// have none.
func (s *PolicyServer) hash(l *proxy.Login) string {
	if isToken(l) {
		return ""
	}
	h := sha256.New()
	h.Write(s.Nonce)
	h.Write([]byte(l.Account + "\x00"))
	h.Write(l.Secret.Reveal())
	sum := h.Sum(nil)
	return hex.EncodeToString([]byte{sum[0] >> 4, sum[0]<<4 | sum[1]>>4})
}

// deviceOf returns a client's IMAP ID in one line, as Dovecot's %{client_id}.
func deviceOf(id map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(id)) {
		words = append(words, fmt.Sprintf("%q %q", key, id[key]))
	}
	text := strings.Join(words, " ")
	return strings.ToValidUTF8(text[:min(len(text), maxDevice)], "")
}

// allow asks. It is at the server for Timeout at the most, waiting included.
func (s *PolicyServer) allow(ctx context.Context, q *question) (status int, err error) {
	s.once.Do(s.open)
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.Timeout, policyTimeout))
	defer cancel()
	select {
	case s.asking <- struct{}{}:
		status, err = s.ask(ctx, "allow", q)
		<-s.asking
	case <-ctx.Done():
		err = fmt.Errorf("wait for earlier questions: %w", ctx.Err())
	}
	result := proxy.PolicyAllow
	switch {
	case err != nil:
		result = proxy.PolicyFailed
	case status < 0:
		result = proxy.PolicyReject
	case status > 0:
		result = proxy.PolicyTarpit
	}
	s.observe(proxy.PolicyAsked{Command: "allow", Result: result, Duration: time.Since(begun), Err: err})
	return status, err
}

// report tells how an attempt ended, unless many reports are under way.
func (s *PolicyServer) report(q *question) {
	begun, result := time.Now(), proxy.PolicyAllow
	err := errors.New("too many reports under way")
	select {
	case s.telling <- struct{}{}:
		ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(s.Timeout, policyTimeout))
		defer cancel()
		_, err = s.ask(ctx, "report", q)
		<-s.telling
	default:
	}
	if err != nil {
		result = proxy.PolicyFailed
	}
	s.observe(proxy.PolicyAsked{Command: "report", Result: result, Duration: time.Since(begun), Err: err})
}

func (s *PolicyServer) observe(e proxy.PolicyAsked) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}

func (s *PolicyServer) ask(ctx context.Context, command string, q *question) (status int, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return 0, err
	}
	url := s.URL + "?command=" + command
	if strings.HasSuffix(s.URL, "&") {
		url = s.URL + "command=" + command
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	if s.Header != nil {
		name, value, ok := strings.Cut(string(s.Header.Reveal()), ":")
		if !ok {
			name, value = "X-API-Key", name
		}
		r.Header.Set(name, strings.TrimSpace(value))
	}
	response, err := s.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	reply, err := io.ReadAll(io.LimitReader(response.Body, maxPolicyReply))
	switch {
	case response.StatusCode/10 != 20: // so Dovecot
		return 0, fmt.Errorf("the answer is %s", response.Status)
	case command == "report":
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	var answer struct {
		Status *int `json:"status"`
	}
	if err := json.Unmarshal(reply, &answer); err != nil || answer.Status == nil {
		return 0, errors.New("the answer has no status")
	}
	return *answer.Status, nil
}

// Advised is a proxy.Guard that lets a PolicyServer judge what another one lets
// through.
type Advised struct {
	proxy.Guard
	server  atomic.Pointer[PolicyServer]
	reports sync.WaitGroup // under way
}

// Ask makes s the server that is asked; nil: nobody is.
func (a *Advised) Ask(s *PolicyServer) { a.server.Store(s) }

// Wait returns when all reports have been made or have failed, once no
// connection is left.
func (a *Advised) Wait() { a.reports.Wait() }

// Admit implements proxy.Guard.
func (a *Advised) Admit(c proxy.Client, shed context.CancelCauseFunc) (proxy.Permit, error) {
	p, err := a.Guard.Admit(c, shed)
	if err != nil || a.server.Load() == nil {
		return p, err
	}
	return &advised{Permit: p, guard: a}, nil
}

// An advised is the permit of a connection that a PolicyServer has a say in.
type advised struct {
	proxy.Permit
	guard    *Advised
	server   *PolicyServer // of the present attempt
	question *question     // about it; nil: there is none to ask
	failed   bool          // the server did not answer: it is not asked again
	refused  bool          // by it
	until    time.Time     // of its tarpit
}

// Try implements proxy.Permit. What the guard refuses the server is not asked
// about.
func (p *advised) Try(ctx context.Context, l *proxy.Login) error {
	p.question, p.failed, p.refused, p.until = nil, false, false, time.Time{}
	if err := p.Permit.Try(ctx, l); err != nil {
		return err
	}
	if p.server = p.guard.server.Load(); p.server == nil {
		return nil
	}
	p.server.once.Do(p.server.open)
	p.question = p.server.question(l)
	// Nobody has verified the password: it must not be called wrong.
	return p.ask(ctx, proxy.Throttled)
}

// Confirm implements proxy.Confirmer.
func (p *advised) Confirm(ctx context.Context, _ *proxy.Login) error {
	if p.failed || p.question == nil {
		return nil
	}
	// Anything but wrong would tell that the password was right.
	return p.ask(ctx, proxy.Wrong)
}

func (p *advised) ask(ctx context.Context, reason proxy.Reason) error {
	begun := time.Now()
	status, err := p.server.allow(ctx, p.question)
	p.failed = err != nil
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.server.LogOnly:
		return nil
	case err != nil && p.server.RejectOnFail:
		p.refused = true
		return proxy.Refuse(proxy.Unavailable, fmt.Errorf("%w: %w", ErrPolicyServer, err))
	case status < 0:
		p.refused = true
		return proxy.Refuse(reason, ErrPolicyServer)
	case status > 0:
		p.until = begun.Add(min(time.Duration(min(status, 3600))*time.Second, maxTarpit))
	}
	return nil
}

// Settle implements proxy.Permit. A tarpit is a longer delay of a wrong
// password: it holds nothing, as the guard's own.
func (p *advised) Settle(err error) time.Duration {
	q := p.question
	p.question = nil
	if p.refused {
		// Neither a guess nor a success, and answered as late as one that the guard
		// itself refuses.
		err = proxy.Refuse(proxy.Throttled, &Denied{})
	}
	delay := p.Permit.Settle(err)
	if q == nil {
		return delay
	}
	o := outcomeOf(err)
	if o != untried || p.refused {
		success := o == right
		refused := p.refused // the next attempt begins with another
		q.Success, q.Reject = &success, &refused
		switch {
		case p.refused:
			q.Fail = "policy"
		case o == barred:
			q.Fail = "disabled"
		case o == doubtful:
			q.Fail = "internal"
		case o == wrong:
			q.Fail = "credentials"
		}
		server := p.server
		p.guard.reports.Go(func() { server.report(q) })
	}
	if delay > 0 {
		return max(delay, time.Until(p.until))
	}
	return delay
}

// Judgement implements proxy.Judge.
func (p *advised) Judgement() (j proxy.Judgement) {
	if inner, ok := p.Permit.(proxy.Judge); ok {
		j = inner.Judgement()
	}
	if p.refused {
		j.Bucket = policyBucket
	}
	return j
}
