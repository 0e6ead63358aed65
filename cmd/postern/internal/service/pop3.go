package service

import (
	"context"
	"maps"
	"net"
	"slices"

	"postern/bridge"
	"postern/bridge/shadow"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
)

func (g *generation) setPOP3() (err error) {
	c := g.cfg.POP3
	if g.pop3.uidl, err = uidl.Parse(c.UIDL); err != nil {
		return configs.Errors{g.cfg.Errorf("pop3.uidl", "%v", err)}
	}
	g.pop3.shared = map[string]sharedPOP3{}
	if before := g.current.Load(); before != nil {
		g.pop3.shared, g.pop3.learner = maps.Clone(before.pop3.shared), before.pop3.learner
		if d := before.pop3.delay; d != nil && d.Every == c.LoginDelay {
			g.pop3.delay = d
		}
	}
	if c.LoginDelay > 0 && g.pop3.delay == nil {
		g.pop3.delay = &bridge.LoginDelay{Every: c.LoginDelay}
	}
	return nil
}

// maildropsOf returns the parts that the POP3 listeners of a backend share.
func (g *generation) maildropsOf(backend string) sharedPOP3 {
	shared, ok := g.pop3.shared[backend]
	if !ok {
		shared.locks = new(bridge.Locks)
		shared.brake = bridge.NewBrake(backend, g.observer)
	}
	if limit := g.cfg.POP3.FirstListings; !ok || shared.queue.Limit != limit {
		shared.queue = &bridge.Queue{Limit: limit}
	}
	limits := g.cfg.POP3.Shadow
	if s := shared.shadow; s == nil || s.Concurrency != limits.Concurrency || s.PerSecond != float64(limits.PerSecond) {
		shared.shadow = &shadow.Limits{Concurrency: limits.Concurrency, PerSecond: float64(limits.PerSecond)}
	}
	g.pop3.shared[backend] = shared
	return shared
}

// newBridge returns the bridge to pool for a listener with the configuration c.
func (g *generation) newBridge(name string, pool *backend.Pool, c configs.POP3) *bridge.Backend {
	server := g.cfg.Backends[name].IMAP
	deletion, _ := bridge.ParseDeletion(c.Delete) // configs has checked c
	lock, _ := bridge.ParseLockMode(c.Lock)
	shared := g.maildropsOf(name)
	b := &bridge.Backend{
		Name: name, Idle: g.cfg.Timeouts.POP3Idle, Timeout: g.cfg.Timeouts.Backend, Observer: g.observer,
		UIDL: g.pop3.uidl, Delete: deletion, Lock: lock, Locks: shared.locks, Queue: shared.queue,
		Brake: shared.brake, Listings: g.listings,
		Delay: g.pop3.delay, Recompute: c.OnUnreadableRecord == "recompute",
		KeepUnseen: !c.MarkSeen, ExpireNever: c.Expire == "never", UTF8: c.UTF8, Anonymous: !c.AnnounceImplementation, Last: c.EnableLast,
		StableBodies: server.StableBodies, Estimates: server.SizesAreEstimates,
		LogIn: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
			if err := g.stands(ctx, l); err != nil {
				return nil, "", err
			}
			conn, capabilities, err := pool.LoginIMAP(ctx, l)
			if err != nil {
				return nil, "", err // not conn: a nil *Conn is no nil net.Conn
			}
			return conn, capabilities, nil
		},
	}
	g.bridges = append(g.bridges, b)
	return b
}

// newShadow returns the Backend of the mode shadow, for a bridge to pool and its old server.
func (g *generation) newShadow(served *bridge.Backend, pool *backend.Pool, old *backend.POP3) *shadow.Backend {
	return &shadow.Backend{
		Bridge: served, Limits: g.maildropsOf(served.Name).shadow,
		Healthy: func() bool { return countMembers(pool.Status()).accepting > 0 },
		Old: func(ctx context.Context, l *proxy.Login, w *shadow.Watcher) (proxy.Session, error) {
			return old.LoginWatched(ctx, l, w)
		},
	}
}

// A noted is the Backend of an old POP3 server. It notes which accounts the server serves,
// so that the bridge asks it again for their unique-ids.
type noted struct {
	proxy.Backend
	cache, record bridge.Bucket // nil: nothing is noted
	observer      proxy.Observer
}

// newNoted returns b with notes in the storage of g.
func (g *generation) newNoted(b proxy.Backend) *noted {
	n := &noted{Backend: b, observer: g.observer}
	g.noted = append(g.noted, n)
	return n
}

// Login implements proxy.Backend. A note that cannot be written does not concern the client.
func (n *noted) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	session, err := n.Backend.Login(ctx, l)
	if err != nil || n.cache == nil || n.record == nil {
		return session, err
	}
	if err := bridge.ServedByOld(ctx, n.cache, n.record, l.Account); err != nil {
		n.observer.Observe(proxy.MaildropNoticed{Client: l.Client, Account: l.Account, Kind: proxy.NoticeCache, Err: err})
	}
	return session, nil
}

// setStorage gives the bridges of g their stores. g does not serve yet.
func (g *generation) setStorage(m *stored.Storage) {
	for _, n := range g.noted {
		n.cache, n.record = m.Cache, m.Record
	}
	for _, b := range g.bridges {
		b.Cache, b.Record = m.Cache, m.Record
		b.Forgotten = func(ctx context.Context, account string) (bool, error) {
			return m.Opened.Load().Forgotten(ctx, account)
		}
	}
}

// openBrakes opens the state of the backends' brakes. A brake whose state cannot be read
// reports the error, and is on.
func (g *generation) openBrakes(ctx context.Context, m *stored.Storage) {
	if m.Brakes == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(g.pop3.shared)) {
		_ = g.pop3.shared[name].brake.Open(ctx, m.Brakes) // the brake reports an error to its observer
	}
}

// brake returns the brake of a backend of the current generation.
func (s *Service) brake(_ context.Context, backend string) (*bridge.Brake, error) {
	g := s.current.Load()
	if err := stored.CheckPOP3Backend(g.cfg, backend); err != nil {
		return nil, err
	}
	return g.pop3.shared[backend].brake, nil
}
