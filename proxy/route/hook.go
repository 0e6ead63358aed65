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
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"postern/proxy"
)

// A Hook is a Rule that asks an HTTP server. It POSTs
//
//	{"account": "alice@example.org", "protocol": "imap", "service": "imap",
//	 "client": "192.0.2.1", "session": "KZ4..."}
//
// and the answer is 200 with {"backend": "name"}, which may also have "pop3_mode",
// or, if another rule has to decide, 200 with {}, 204 or 404. Any other answer, or none in time, refuses the
// login temporarily. The password is never sent.
//
// An answer is valid for the time of Cache, for all logins to the account with
// that protocol and service: it must not depend on client and session.
type Hook struct {
	URL      string        // http or https
	Timeout  time.Duration // of a request; 0: proxy.DefaultHookTimeout
	Cache    time.Duration // how long an answer is valid; 0: proxy.DefaultHookCache; negative: answers are not kept
	POP3Mode string        // of answers without pop3_mode

	once      sync.Once
	transport http.RoundTripper // nil: one of its own
	client    *http.Client
	requests  singleflight.Group // by key

	mu    sync.Mutex
	cache map[string]answer // by key
}

const (
	hookConnections = 64      // more requests wait, within their timeout
	maxHookReply    = 4 << 10 // octets
	maxCached       = 1 << 16 // answers of about 200 octets each
)

type answer struct {
	choice Choice
	until  time.Time
}

// keyOf returns what an answer depends on. None of its parts contains NUL.
func keyOf(l *proxy.Login) string {
	return strings.Join([]string{l.Account, l.Client.Protocol, l.Client.Service}, "\x00")
}

// Route implements Rule.
func (h *Hook) Route(ctx context.Context, l *proxy.Login) (Choice, error) {
	_, choice, err := h.route(ctx, l)
	return choice, err
}

// route is Route, and also returns whether the answer came from the cache. A
// request goes on when the client of l leaves, because other logins may wait for
// it.
func (h *Hook) route(ctx context.Context, l *proxy.Login) (source string, choice Choice, err error) {
	h.once.Do(h.open)
	key := keyOf(l)
	if choice, ok := h.cached(key); ok {
		return proxy.RouteCached, choice, nil
	}
	var panicked any // in the request of this login
	result := h.requests.DoChan(key, func() (choice any, err error) {
		defer func() {
			if v := recover(); v != nil { // singleflight would end the process
				panicked, err = fmt.Sprintf("%v\n%s", v, debug.Stack()), errHookPanic
			}
		}()
		return h.fetch(context.WithoutCancel(ctx), key, l)
	})
	select {
	case r := <-result:
		if panicked != nil {
			panic(panicked) // the connection recovers it
		}
		choice, _ = r.Val.(Choice)
		return proxy.RouteHook, choice, r.Err
	case <-ctx.Done():
		return proxy.RouteHook, Choice{}, context.Cause(ctx)
	}
}

// MayReturn implements Rule: a hook may return any backend.
func (h *Hook) MayReturn(Choice) bool { return true }

func (h *Hook) open() {
	if h.transport == nil {
		h.transport = &http.Transport{
			MaxConnsPerHost:        hookConnections,
			MaxIdleConnsPerHost:    hookConnections,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 16 << 10,
			ForceAttemptHTTP2:      true,
		}
	}
	h.cache = make(map[string]answer)
	h.client = &http.Client{
		Transport:     h.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var errHookPanic = errors.New("hook: a panic ended the request")

// cached returns the answer for key that still holds.
func (h *Hook) cached(key string) (choice Choice, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.cache[key]
	return a.choice, ok && time.Now().Before(a.until)
}

// fetch requests the answer for l, unless a request that has just ended has stored
// it, and stores it.
func (h *Hook) fetch(ctx context.Context, key string, l *proxy.Login) (Choice, error) {
	if choice, ok := h.cached(key); ok {
		return choice, nil
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(h.Timeout, proxy.DefaultHookTimeout))
	defer cancel()
	choice, err := h.request(ctx, l)
	if err != nil {
		return Choice{}, fmt.Errorf("hook: %w", err)
	}
	if choice.Backend != "" {
		choice = choice.or(Choice{POP3Mode: h.POP3Mode})
	}
	if lifetime := cmp.Or(h.Cache, proxy.DefaultHookCache); lifetime > 0 {
		h.store(key, answer{choice, time.Now().Add(lifetime)})
	}
	return choice, nil
}

// store caches an answer. A full cache drops an arbitrary one for it.
func (h *Hook) store(key string, a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.cache) >= maxCached {
		for old := range h.cache {
			delete(h.cache, old)
			break
		}
	}
	h.cache[key] = a
}

func (h *Hook) request(ctx context.Context, l *proxy.Login) (Choice, error) {
	body, err := json.Marshal(map[string]string{
		"account": l.Account, "protocol": l.Client.Protocol, "service": l.Client.Service,
		"client": l.Client.Addr.Addr().String(), "session": l.Client.ID,
	})
	if err != nil {
		return Choice{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return Choice{}, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "Postern")
	response, err := h.client.Do(request)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the URL, which may hold a token
	}
	if err != nil {
		return Choice{}, err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusOK:
		return readReply(response.Body)
	case http.StatusNoContent, http.StatusNotFound:
		_, _ = io.CopyN(io.Discard, response.Body, maxHookReply) // so that the connection can be reused
		return Choice{}, nil
	}
	return Choice{}, fmt.Errorf("status %s", shorten(response.Status))
}

// readReply decodes an answer strictly, so that the author of a hook learns that,
// say, an account in the answer has no effect.
func readReply(body io.Reader) (Choice, error) {
	text, err := io.ReadAll(io.LimitReader(body, maxHookReply+1))
	if err != nil {
		return Choice{}, err
	}
	if len(text) > maxHookReply {
		return Choice{}, fmt.Errorf("an answer of more than %d octets", maxHookReply)
	}
	var reply struct {
		Backend  string `json:"backend"`
		POP3Mode string `json:"pop3_mode"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&reply); err != nil {
		return Choice{}, fmt.Errorf("answer: %s", shorten(err.Error()))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Choice{}, errors.New("answer: more than one value")
	}
	if reply.POP3Mode != "" && !slices.Contains(POP3Modes(), reply.POP3Mode) {
		return Choice{}, fmt.Errorf("answer: pop3_mode %q is not known; there are: %s", shorten(reply.POP3Mode), listed(POP3Modes()))
	}
	return Choice{reply.Backend, reply.POP3Mode}, nil
}
