package authpolicy

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
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Server is a policy server, such as wforce, that speaks Dovecot's auth-policy
// protocol. The fields must not change after the first use.
type Server struct {
	URL          string        // http or https; "?command=allow" is appended, or "command=allow" if URL ends with &
	Header       *proxy.Secret // "Name: value", or the value of X-API-Key; nil: none
	Nonce        []byte        // of the password hashes, the same on all clients of the server; nil: random
	Timeout      time.Duration // of a request, including the wait for earlier requests; 0: 2 s
	RejectOnFail bool          // refuse attempts when the server does not answer
	LogOnly      bool          // request and emit events, but ignore the answers
	Observer     proxy.Observer

	once           sync.Once
	transport      http.RoundTripper // nil: open makes one
	client         *http.Client
	allow, reports chan struct{} // one element for each request under way
}

const (
	defaultTimeout = 2 * time.Second
	maxConcurrent  = 64      // requests of each command; further allow requests wait, further reports fail
	maxResponse    = 4 << 10 // octets of a response that are read
	maxDevice      = 256     // octets of device_id
)

// A request is the JSON body of both commands. The last fields belong to report
// only.
type request struct {
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

func (s *Server) open() {
	if s.transport == nil {
		s.transport = &http.Transport{
			MaxConnsPerHost:        2 * maxConcurrent,
			MaxIdleConnsPerHost:    maxConcurrent,
			IdleConnTimeout:        10 * time.Second,
			MaxResponseHeaderBytes: 16 << 10,
		}
	}
	s.client = &http.Client{
		Transport:     s.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.allow, s.reports = make(chan struct{}, maxConcurrent), make(chan struct{}, maxConcurrent)
	if s.Nonce == nil {
		s.Nonce = make([]byte, 32)
		_, _ = rand.Read(s.Nonce) // never fails
	}
}

// request returns the body of the requests about l.
func (s *Server) request(l *proxy.Login) *request {
	return &request{
		Login: l.Account, Remote: l.Client.Addr.Addr().Unmap().String(), PwHash: s.hash(l), Device: deviceID(l.Hello.ID),
		Protocol: l.Client.Protocol, SessionID: l.Client.ID, TLS: l.Client.TLS != nil,
	}
}

// hash returns the first 12 bits of a hash, as Dovecot does: the server can
// recognise equal passwords of an account, but learns little about them. The hash
// of a token is empty, because each token is used for a short time only.
func (s *Server) hash(l *proxy.Login) string {
	if wire.IsToken(l.Mechanism, l.Secret.Reveal()) {
		return ""
	}
	h := sha256.New()
	h.Write(s.Nonce)
	h.Write([]byte(l.Account + "\x00"))
	h.Write(l.Secret.Reveal())
	sum := h.Sum(nil)
	return hex.EncodeToString([]byte{sum[0] >> 4, sum[0]<<4 | sum[1]>>4})
}

// deviceID returns a client's IMAP ID in one line, as Dovecot's %{client_id}.
func deviceID(id map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(id)) {
		words = append(words, fmt.Sprintf("%q %q", key, id[key]))
	}
	text := strings.Join(words, " ")
	return strings.ToValidUTF8(text[:min(len(text), maxDevice)], "")
}

// requestAllow returns the status of the server's answer: 0 allows the attempt, a
// negative number rejects it, and a positive number is a tarpit in seconds. It
// returns after Timeout at the latest.
func (s *Server) requestAllow(ctx context.Context, r *request) (status int, err error) {
	s.once.Do(s.open)
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.Timeout, defaultTimeout))
	defer cancel()
	select {
	case s.allow <- struct{}{}:
		status, err = s.post(ctx, "allow", r)
		<-s.allow
	case <-ctx.Done():
		err = fmt.Errorf("wait for earlier requests: %w", ctx.Err())
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
	s.emit(proxy.PolicyRequested{Command: "allow", Result: result, Duration: time.Since(begun), Err: err})
	return status, err
}

// report sends the result of an attempt, unless maxConcurrent reports are under
// way.
func (s *Server) report(r *request) {
	begun, result := time.Now(), proxy.PolicyAllow
	err := errors.New("too many reports under way")
	select {
	case s.reports <- struct{}{}:
		ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(s.Timeout, defaultTimeout))
		defer cancel()
		_, err = s.post(ctx, "report", r)
		<-s.reports
	default:
	}
	if err != nil {
		result = proxy.PolicyFailed
	}
	s.emit(proxy.PolicyRequested{Command: "report", Result: result, Duration: time.Since(begun), Err: err})
}

func (s *Server) emit(e proxy.PolicyRequested) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}

func (s *Server) post(ctx context.Context, command string, r *request) (status int, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	url := s.URL + "?command=" + command
	if strings.HasSuffix(s.URL, "&") {
		url = s.URL + "command=" + command
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	post.Header.Set("Content-Type", "application/json")
	if s.Header != nil {
		name, value, ok := strings.Cut(string(s.Header.Reveal()), ":")
		if !ok {
			name, value = "X-API-Key", name
		}
		post.Header.Set(name, strings.TrimSpace(value))
	}
	response, err := s.client.Do(post)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	reply, err := io.ReadAll(io.LimitReader(response.Body, maxResponse))
	switch {
	case response.StatusCode/10 != 20: // Dovecot accepts the same codes
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
