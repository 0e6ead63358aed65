package shadow

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"postern/bridge"
	"postern/bridge/oldserver"
)

// maxWanted bounds the messages whose headers the next sessions ask for.
const maxWanted = 20 * maxAsked

// An accountState is what is known of an account from the comparisons before. It is in the cache:
// without it headers are read again, and the account is compared again.
type accountState struct {
	Compared    time.Time // when; zero: never
	Clean       bool
	Unasked     time.Time // of an account that was never compared: when a session asked for no UIDLs
	Messages    int       // that the last session has left
	UIDValidity uint32    // of INBOX
	UIDNext     uint32    // of INBOX: messages from there on have come since
	Late        string    // the UIDL of the first message that was late, or ""
	LateSince   time.Time // when it was late first
	Wanted      []string  // UIDLs of the messages whose headers are wanted
	Bodies      []string  // UIDLs of the messages of which the whole is wanted
	Stalled     bool      // the last session brought none of them

	Sums map[string][]byte // hashes of such messages, by UIDL

	headers *oldserver.Headers // not nil after load
	encoded []byte             // headers, as they are in the cache
}

// due reports whether an account with so many messages is to be compared.
func (s *accountState) due(messages int, now time.Time) bool {
	if s.Messages != messages {
		return true
	}
	if s.Compared.IsZero() {
		return now.Sub(s.Unasked) >= again
	}
	return !s.Clean || now.Sub(s.Compared) >= again
}

// gathers reports whether the next session can only bring more headers: they are too many
// for one session, and INBOX need not be looked at before.
func (s *accountState) gathers() bool { return len(s.Wanted) > 2*maxAsked && !s.Stalled }

// load returns the state of the account. A state that cannot be read is that of an account
// which was never compared.
func (c *comparison) load(ctx context.Context) (s accountState) {
	s.headers = new(oldserver.Headers)
	cache := c.backend.Bridge.Cache
	if cache == nil {
		return s
	}
	if value, err := cache.Get(ctx, bridge.ShadowKey(c.login.Account)); err == nil && value != nil {
		if json.Unmarshal(value, &s) != nil {
			s = accountState{headers: s.headers}
		}
	}
	if value, err := cache.Get(ctx, bridge.HeadersKey(c.login.Account)); err == nil && value != nil {
		if headers, err := oldserver.DecodeHeaders(value); err == nil {
			s.headers, s.encoded = headers, value
		}
	}
	return s
}

// save keeps the state of the account. An error only costs time.
func (c *comparison) save(ctx context.Context) {
	cache := c.backend.Bridge.Cache
	if cache == nil {
		return
	}
	if value := c.state.headers.Encode(); !bytes.Equal(value, c.state.encoded) {
		_ = cache.Put(ctx, bridge.HeadersKey(c.login.Account), value)
	}
	if value, err := json.Marshal(c.state); err == nil {
		_ = cache.Put(ctx, bridge.ShadowKey(c.login.Account), value)
	}
}
