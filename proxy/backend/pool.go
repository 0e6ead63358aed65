package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"postern/proxy"
)

// A Balance is how a Pool chooses among its members.
type Balance uint8

// The balances.
const (
	Least Balance = iota // the member with the fewest connections
	Hash                 // by the account: the same member on each machine, as long as it takes logins
)

// A Pool is the servers that one backend has for one protocol, all of them
// good for all of its accounts. It is to be used like one Server.
//
// A login goes to a member that is up; if none is, to any, as the news may be
// old. When a member cannot be reached, or is not as it was announced to the
// client, another one is tried; once a server was sent credentials, its answer
// holds.
//
// The exported fields must not change once it is in use.
type Pool struct {
	Name     string    // of the backend in the configuration
	Protocol string    // proxy.IMAP or proxy.Submission
	Members  []*Server // at least one; each Address once
	Balance  Balance

	MaxConnections int            // to each member; 0: no limit
	Fall, Rise     int            // how many times in a row it takes to believe that a member is down, and up again; 0: 3 and 2
	Patience       time.Duration  // of a login: no other member is tried after it; 0: 30 s
	Room           func() error   // why a login can have no connection, whatever the members are; nil: there is never a reason
	Observer       proxy.Observer // nil: nobody

	once    sync.Once
	members []*member
	mu      sync.Mutex // guards what changes in members
	telling sync.Mutex
}

const (
	defaultFall     = 3
	defaultRise     = 2
	defaultPatience = 30 * time.Second
)

// A member is a Server in a Pool.
type member struct {
	*Server
	health  health
	open    int           // connections, and logins under way
	drained bool          // takes no new login
	key     uint64        // of the address
	again   chan struct{} // wakes Watch
}

// A MemberStatus is how a member of a Pool is.
type MemberStatus struct {
	Address     string
	Up, Drained bool
	Connections int // with logins under way
}

// An IMAPServer logs clients in to IMAP: a Server, or a Pool of them.
type IMAPServer interface {
	LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error)
	name() string
}

// An SMTPServer logs clients in to submission: a Server, or a Pool of them.
type SMTPServer interface {
	LoginSMTP(ctx context.Context, l *proxy.Login) (*Conn, error)
	name() string
}

func (s *Server) name() string { return s.Name }
func (p *Pool) name() string   { return p.Name }

// LoginIMAP is Server.LoginIMAP of the first member that takes the login.
func (p *Pool) LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error) {
	conn, err = p.login(ctx, l, func(s *Server) (c *Conn, err error) {
		c, capabilities, err = s.LoginIMAP(ctx, l)
		return c, err
	})
	return conn, capabilities, err
}

// LoginSMTP is Server.LoginSMTP of the first member that takes the login.
func (p *Pool) LoginSMTP(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return p.login(ctx, l, func(s *Server) (*Conn, error) { return s.LoginSMTP(ctx, l) })
}

// login tries each member at most once.
func (p *Pool) login(ctx context.Context, l *proxy.Login, try func(*Server) (*Conn, error)) (*Conn, error) {
	patience := p.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	if p.Room != nil {
		if err := p.Room(); err != nil {
			return nil, p.unavailable(err)
		}
	}
	var tried []*member
	var refused error
	for begun := time.Now(); len(tried) == 0 || time.Since(begun) < patience; {
		m, err := p.take(l.Account, tried)
		if err != nil && refused == nil {
			return nil, p.unavailable(err)
		}
		if err != nil {
			break
		}
		conn, err := p.attempt(m, try)
		if err == nil || !p.unfit(ctx, m, err) {
			return conn, err
		}
		tried, refused = append(tried, m), err
	}
	return nil, refused
}

// attempt tries m, which take has counted until the connection is closed.
func (p *Pool) attempt(m *member, try func(*Server) (*Conn, error)) (conn *Conn, err error) {
	defer func() {
		if conn == nil { // a panic is one, too
			p.leave(m)
		}
	}()
	if conn, err = try(m.Server); err != nil {
		return nil, err
	}
	p.reached(m, nil)
	conn.release = sync.OnceFunc(func() { p.leave(m) })
	return conn, nil
}

// unfit reports whether err is the member's and lets another one have the
// login. Once ctx has ended, it says nothing about the member.
func (p *Pool) unfit(ctx context.Context, m *member, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	kept, ok := errors.AsType[*keptError](err)
	if !ok || kept.server != m.Server { // it has answered, or died over the credentials, or another server is asked first
		return false
	}
	if exhausted(err) {
		return false
	}
	// What comes after the connection may be about the client, of whom the
	// server has been told: one who is blocked there must not take it down for
	// all others. A probe finds out.
	if call, ok := errors.AsType[*net.OpError](err); ok && call.Op == "dial" {
		p.reached(m, err)
	} else {
		m.wake()
	}
	return true
}

// A keptError is why a server was sent no credentials.
type keptError struct {
	server *Server
	err    error
}

func (e *keptError) Error() string { return e.err.Error() }
func (e *keptError) Unwrap() error { return e.err }

// unready is the Refusal for a server that cannot be reached, or is not as it
// has to be before credentials are sent: it lacks what the client was offered,
// say.
func (s *Server) unready(err error) *proxy.Refusal {
	return s.unavailable(&keptError{server: s, err: err})
}

func (p *Pool) unavailable(err error) *proxy.Refusal {
	return proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("backend %s, %s: %w", p.Name, p.Protocol, err))
}

// Why there is no member for a login.
var (
	errDrained  = errors.New("every server is drained")
	errNoneLeft = errors.New("no other server to try")
	errFull     = errors.New("every server has max_connections")
)

// take chooses a member that is not tried yet, and counts the login.
func (p *Pool) take(account string, tried []*member) (*member, error) {
	members := p.all()
	p.mu.Lock()
	defer p.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return m.drained })
	if len(left) == 0 {
		return nil, errDrained
	}
	if left = slices.DeleteFunc(left, func(m *member) bool { return slices.Contains(tried, m) }); len(left) == 0 {
		return nil, errNoneLeft
	}
	if slices.ContainsFunc(left, (*member).usable) {
		left = slices.DeleteFunc(left, func(m *member) bool { return !m.usable() })
	}
	if p.MaxConnections > 0 {
		left = slices.DeleteFunc(left, func(m *member) bool { return m.open >= p.MaxConnections })
	}
	if len(left) == 0 {
		return nil, errFull
	}
	m := p.choose(account, left)
	m.open++
	return m, nil
}

// choose returns the best one of members.
func (p *Pool) choose(account string, members []*member) *member {
	if p.Balance == Hash {
		key := sum(account)
		return slices.MaxFunc(members, func(a, b *member) int { return cmp.Compare(mix(key^a.key), mix(key^b.key)) })
	}
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] }) // among equals, any
	return slices.MinFunc(members, func(a, b *member) int { return cmp.Compare(a.open, b.open) })
}

// sum is the same on every machine, as hash/maphash is not.
func sum(s string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, s)
	return mix(h.Sum64())
}

// mix lets each bit of x count for each of the result: the finalizer of
// MurmurHash3. With it, the highest of a key's products with all members is a
// fair choice that changes for no other account when a member goes: rendezvous
// hashing.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// leave ends what take began.
func (p *Pool) leave(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.open--
}

func (p *Pool) all() []*member {
	p.once.Do(func() {
		for _, s := range p.Members {
			p.members = append(p.members, &member{Server: s, key: sum(s.Address), again: make(chan struct{}, 1)})
		}
	})
	return p.members
}

// Drain takes the member at address out of the choice, or back into it. What
// is connected to it stays so.
func (p *Pool) Drain(address string, on bool) error {
	members := p.all()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range members {
		if m.Address == address {
			m.drained = on
			return nil
		}
	}
	return fmt.Errorf("backend %s, %s: there is no server %s", p.Name, p.Protocol, address)
}

// Status tells how each member is, in the order of Members.
func (p *Pool) Status() []MemberStatus {
	members := p.all()
	p.mu.Lock()
	defer p.mu.Unlock()
	status := make([]MemberStatus, 0, len(members))
	for _, m := range members {
		status = append(status, MemberStatus{Address: m.Address, Up: m.health.up, Drained: m.drained, Connections: m.open})
	}
	return status
}

// Offer returns what the members have in common: each as it was last reached,
// whether it is up or not; one that never was does not count. No Mechanisms:
// none ever was.
func (p *Pool) Offer() proxy.Offer {
	members := p.all()
	offers := make([]proxy.Offer, 0, len(members))
	for _, m := range members {
		offers = append(offers, m.Offer())
	}
	return proxy.Intersect(offers...)
}
