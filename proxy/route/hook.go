package route

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"postern/proxy"
)

// A Hook is a Rule that asks an HTTP server. It POSTs
//
//	{"account": "alice@example.org", "protocol": "imap", "service": "imap",
//	 "client": "192.0.2.1", "session": "KZ4..."}
//
// and the answer is 200 with {"backend": "name"}, or, if another rule is to
// decide, 200 with {}, 204 or 404. Whatever else comes, or nothing in time,
// refuses the login for now. The password is never sent.
//
// An answer holds for Cache, and for all who log in to the account with that
// protocol and service: it must not depend on client and session.
type Hook struct {
	URL     string        // http or https
	Timeout time.Duration // of a question; 0: 2 s
	Cache   time.Duration // how long an answer holds; 0: 1 minute; less: not at all

	once      sync.Once
	transport http.RoundTripper // nil: one of its own
	client    *http.Client
	mu        sync.Mutex
	known     map[question]answer
	asking    map[question]*asking
}

const (
	hookTimeout  = 2 * time.Second
	hookCache    = time.Minute
	hookAtOnce   = 64      // connections to the hook; more questions wait, within their timeout
	maxHookReply = 4 << 10 // octets
	maxKnown     = 1 << 16 // answers: about 200 octets each
)

// A question is what an answer depends on.
type question struct{ account, protocol, service string }

type answer struct {
	backend string
	until   time.Time
}

// Asking is a question under way; it is asked once for all who wait.
type asking struct {
	done    chan struct{}
	backend string
	err     error
}

// Route implements Rule.
func (h *Hook) Route(ctx context.Context, l *proxy.Login) (string, error) {
	_, backend, err := h.route(ctx, l)
	return backend, err
}

// route is Route, and says whether the answer was known before.
func (h *Hook) route(ctx context.Context, l *proxy.Login) (source, backend string, err error) {
	h.once.Do(h.open)
	q := question{l.Account, l.Client.Protocol, l.Client.Service}
	h.mu.Lock()
	if a, ok := h.known[q]; ok && time.Now().Before(a.until) {
		h.mu.Unlock()
		return proxy.RouteCached, a.backend, nil
	}
	a, asked := h.asking[q]
	if !asked {
		a = &asking{done: make(chan struct{}), err: errHookPanic}
		h.asking[q] = a
	}
	h.mu.Unlock()
	if !asked {
		h.ask(ctx, a, q, l)
	}
	select {
	case <-a.done:
		return proxy.RouteHook, a.backend, a.err
	case <-ctx.Done():
		return proxy.RouteHook, "", context.Cause(ctx)
	}
}

// Leads implements Rule: it may lead anywhere.
func (h *Hook) Leads(string) bool { return true }

func (h *Hook) open() {
	if h.transport == nil {
		h.transport = &http.Transport{
			MaxConnsPerHost:        hookAtOnce,
			MaxIdleConnsPerHost:    hookAtOnce,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 16 << 10,
			ForceAttemptHTTP2:      true,
		}
	}
	h.known, h.asking = make(map[question]answer), make(map[question]*asking)
	h.client = &http.Client{
		Transport:     h.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var errHookPanic = errors.New("the question was not asked to its end")

// ask asks, and tells all who wait. It goes on when the client of l leaves: it
// is not for that one alone.
func (h *Hook) ask(ctx context.Context, a *asking, q question, l *proxy.Login) {
	defer func() {
		h.mu.Lock()
		delete(h.asking, q)
		if cache := cmp.Or(h.Cache, hookCache); a.err == nil && cache > 0 {
			h.remember(q, answer{a.backend, time.Now().Add(cache)})
		}
		h.mu.Unlock()
		close(a.done)
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(h.Timeout, hookTimeout))
	defer cancel()
	if a.backend, a.err = h.post(ctx, l); a.err != nil {
		a.err = fmt.Errorf("hook: %w", a.err)
	}
}

// remember makes room by forgetting any: the map's order is random.
func (h *Hook) remember(q question, a answer) {
	if len(h.known) >= maxKnown {
		for old := range h.known {
			delete(h.known, old)
			break
		}
	}
	h.known[q] = a
}

func (h *Hook) post(ctx context.Context, l *proxy.Login) (string, error) {
	body, err := json.Marshal(map[string]string{
		"account": l.Account, "protocol": l.Client.Protocol, "service": l.Client.Service,
		"client": l.Client.Addr.Addr().String(), "session": l.Client.ID,
	})
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "Postern")
	response, err := h.client.Do(request)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the URL, which may hold a token
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusOK:
		return readReply(response.Body)
	case http.StatusNoContent, http.StatusNotFound:
		_, _ = io.CopyN(io.Discard, response.Body, maxHookReply) // the connection is used again
		return "", nil
	}
	return "", fmt.Errorf("status %s", shorten(response.Status))
}

// readReply is strict: who answers with an account, say, shall learn that it
// does not count.
func readReply(body io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(body, maxHookReply+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxHookReply {
		return "", fmt.Errorf("an answer of more than %d octets", maxHookReply)
	}
	var reply struct {
		Backend string `json:"backend"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&reply); err != nil {
		return "", fmt.Errorf("answer: %s", shorten(err.Error()))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("answer: more than one value")
	}
	return reply.Backend, nil
}
