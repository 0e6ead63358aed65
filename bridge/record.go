package bridge

import (
	"context"

	"postern/proxy"
)

// A Store remembers values by key. Get returns nil if there is none; Put is on
// the disk when it returns; Update is a Put of what change makes of the old
// value, with nobody in between.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
}

// The values of Notice.Kind.
const (
	NoticeCache     = "cache_failed" // what was remembered could not be read or written: it only costs time
	NoticeNotProven = "not_proven"   // the server contradicted itself about a listing
)

// A Notice is what an operator should know about a session.
type Notice struct {
	Client  proxy.Client
	Account string
	Kind    string // Notice...
	Count   int    // messages it is about
	Err     error
}

func (s *session) notice(kind string, count int, err error) {
	if s.backend.Notice != nil {
		s.backend.Notice(Notice{Client: s.client, Account: s.login.Account, Kind: kind, Count: count, Err: err})
	}
}

// key is that of an account's INBOX in every store.
func key(account string) string { return account + "\x00INBOX" }

// remembered returns what is known of INBOX, maybe nothing.
func (s *session) remembered(ctx context.Context) snapshot {
	if s.backend.Cache == nil {
		return snapshot{}
	}
	value, err := s.backend.Cache.Get(ctx, key(s.login.Account))
	if err != nil || value == nil {
		if err != nil {
			s.notice(NoticeCache, 0, err)
		}
		return snapshot{}
	}
	known, err := decodeSnapshot(value)
	if err != nil {
		s.notice(NoticeCache, 0, err)
	}
	return known
}

// remember keeps what the session has learnt. The session may be over, so
// nothing can stop it.
func (s *session) remember() {
	if s.drop == nil || !s.drop.changed {
		return
	}
	s.drop.changed = false
	s.keep(s.drop.snapshot())
}

func (s *session) keep(known snapshot) {
	if s.backend.Cache == nil {
		return
	}
	if err := s.backend.Cache.Put(context.Background(), key(s.login.Account), known.encode()); err != nil {
		s.notice(NoticeCache, len(known.messages), err)
	}
}
