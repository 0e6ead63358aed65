package service

import (
	"context"
	"maps"
	"net"
	"slices"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
)

func (h *generation) setPOP3() (err error) {
	c := h.cfg.POP3
	if h.pop3.uidl, err = uidl.Parse(c.UIDL); err != nil {
		return configs.Errors{h.cfg.Errorf("pop3.uidl", "%v", err)}
	}
	h.pop3.shared = map[string]sharedMaildrops{}
	if before := h.current.Load(); before != nil {
		h.pop3.shared = maps.Clone(before.pop3.shared)
		if d := before.pop3.delay; d != nil && d.Every == c.LoginDelay {
			h.pop3.delay = d
		}
	}
	if c.LoginDelay > 0 && h.pop3.delay == nil {
		h.pop3.delay = &bridge.LoginDelay{Every: c.LoginDelay}
	}
	return nil
}

// maildropsOf returns what the POP3 listeners of a backend share.
func (h *generation) maildropsOf(backend string) sharedMaildrops {
	shared, ok := h.pop3.shared[backend]
	if !ok {
		shared.locks = new(bridge.Locks)
		shared.brake = bridge.NewBrake(backend, h.observer)
	}
	if limit := h.cfg.POP3.FirstListings; !ok || shared.queue.Limit != limit {
		shared.queue = &bridge.Queue{Limit: limit}
	}
	h.pop3.shared[backend] = shared
	return shared
}

// newBridge makes what serves pool on a listener that has c.
func (h *generation) newBridge(name string, pool *backend.Pool, c configs.POP3) *bridge.Backend {
	server := h.cfg.Backends[name].IMAP
	deletion, _ := bridge.ParseDeletion(c.Delete) // configs knows the words
	lock, _ := bridge.ParseLockMode(c.Lock)
	shared := h.maildropsOf(name)
	b := &bridge.Backend{
		Name: name, Idle: h.cfg.Timeouts.POP3Idle, Timeout: h.cfg.Timeouts.Backend, Observer: h.observer,
		UIDL: h.pop3.uidl, Delete: deletion, Lock: lock, Locks: shared.locks, Queue: shared.queue,
		Brake: shared.brake, Listings: h.listings,
		Delay: h.pop3.delay, Recompute: c.OnUnreadableRecord == "recompute",
		KeepUnseen: !c.MarkSeen, ExpireNever: c.Expire == "never", UTF8: c.UTF8, Anonymous: !c.AnnounceImplementation, Last: c.EnableLast,
		StableBodies: server.StableBodies, Estimates: server.SizesAreEstimates,
		Dial: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
			conn, capabilities, err := pool.LoginIMAP(ctx, l)
			if err != nil {
				return nil, "", err // not conn: a nil *Conn is no nil net.Conn
			}
			return conn, capabilities, nil
		},
	}
	h.bridges = append(h.bridges, b)
	return b
}

// setStorage gives the bridges of h their stores. h does not serve yet.
func (h *generation) setStorage(m *stored.Storage) {
	for _, b := range h.bridges {
		b.Cache, b.Record = m.Cache, m.Record
	}
}

// openBrakes gives the brakes of the backends their state. One whose state cannot
// be read reports so, and brakes.
func (h *generation) openBrakes(ctx context.Context, m *stored.Storage) {
	if m.Brakes == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(h.pop3.shared)) {
		_ = h.pop3.shared[name].brake.Open(ctx, m.Brakes) // an error is observed
	}
}

// brake returns the brake of a backend that is served.
func (s *Service) brake(_ context.Context, backend string) (*bridge.Brake, error) {
	h := s.current.Load()
	if err := stored.CheckPOP3Backend(h.cfg, backend); err != nil {
		return nil, err
	}
	return h.pop3.shared[backend].brake, nil
}
