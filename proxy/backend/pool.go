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

// The values of Balance.
const (
	Least Balance = iota // the member with the fewest connections
	Hash                 // by the account: the same member on every machine, as long as it accepts logins
)

// A Pool is the servers of one backend for one protocol. Each holds all accounts
// of the backend. A Pool is used like a Server.
//
// A login goes to a member that is up; if none is, to any, because the last probe
// may be old. If a member cannot be reached, or lacks what the client was
// offered, the next one is tried. Once a server has received credentials, its
// answer is final.
//
// The exported fields must not change once it is in use.
type Pool struct {
	Name     string    // of the backend in the configuration
	Protocol string    // of package proxy
	Members  []*Server // at least one; addresses differ
	Balance  Balance

	MaxConnections int            // to each member; 0: no limit
	Fall, Rise     int            // failures and successes in a row after which a member is down and up; 0: 3 and 2
	RetryTime      time.Duration  // since the begin of a login, after which no other member is tried; 0: 30 s
	CheckResources func() error   // returns why this machine can open no connection now; nil: not called
	Observer       proxy.Observer // nil: none

	Accounts     *Accounts                   // nil: connections of accounts are not counted
	AccountLimit AccountLimit                // with Accounts
	Mailbox      func(account string) string // the name of an account at the servers; nil: the account

	once      sync.Once
	members   []*member
	mu        sync.Mutex // guards the fields of members that change
	reporting sync.Mutex // serializes reportHealth
}

const (
	defaultFall      = 3
	defaultRise      = 2
	defaultRetryTime = 30 * time.Second
)

// A member is a Server in a Pool.
type member struct {
	*Server
	health      health
	connections int           // open ones, and logins in progress
	drained     bool          // gets no new login
	addressHash uint64        // of the address
	probeSoon   chan struct{} // wakes Watch
}

// A MemberStatus is the state of a member of a Pool.
type MemberStatus struct {
	Address     string
	Known       bool // at least one probe or login has ended; without it Up says nothing
	Up, Drained bool
	Since       time.Time // of Up; zero: not Known
	Connections int       // including logins in progress
	Err         error     // of the last probe or connection; nil: it succeeded

	IdentityRefused bool // at the last login the server did not offer the Identity
}

// An IMAPServer logs clients in to IMAP: a Server or a Pool.
type IMAPServer interface {
	LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error)
	name() string
}

// An SMTPServer logs clients in to submission: a Server or a Pool.
type SMTPServer interface {
	LoginSMTP(ctx context.Context, l *proxy.Login) (*Conn, error)
	name() string
}

func (s *Server) name() string { return s.Name }
func (p *Pool) name() string   { return p.Name }

// LoginIMAP is Server.LoginIMAP of the first member that accepts the connection.
func (p *Pool) LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error) {
	conn, err = p.login(ctx, l, func(s *Server) (c *Conn, err error) {
		c, capabilities, err = s.LoginIMAP(ctx, l)
		return c, err
	})
	return conn, capabilities, err
}

// LoginSMTP is Server.LoginSMTP of the first member that accepts the connection.
func (p *Pool) LoginSMTP(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return p.login(ctx, l, func(s *Server) (*Conn, error) { return s.LoginSMTP(ctx, l) })
}

// login logs l in, once the account may have another connection.
func (p *Pool) login(ctx context.Context, l *proxy.Login, try func(*Server) (*Conn, error)) (conn *Conn, err error) {
	if p.CheckResources != nil {
		if err := p.CheckResources(); err != nil {
			return nil, p.unavailable(err)
		}
	}
	at, err := p.enter(ctx, l)
	if err != nil {
		return nil, err
	}
	defer func() {
		if conn == nil { // also after a panic
			at.leave()
		}
	}()
	if conn, err = p.tryMembers(ctx, l.Account, try); err != nil {
		at.noteThrottling(err)
		return nil, err
	}
	release := conn.release
	conn.release, conn.place = sync.OnceFunc(func() { release(); at.leave() }), at
	return conn, nil
}

// tryMembers tries each member at most once.
func (p *Pool) tryMembers(ctx context.Context, account string, try func(*Server) (*Conn, error)) (*Conn, error) {
	retryTime := p.RetryTime
	if retryTime == 0 {
		retryTime = defaultRetryTime
	}
	var tried []*member
	var lastErr error
	for begun := time.Now(); len(tried) == 0 || time.Since(begun) < retryTime; {
		m, err := p.acquire(account, tried)
		if err != nil && lastErr == nil {
			return nil, p.unavailable(err)
		}
		if err != nil {
			break
		}
		conn, err := p.attempt(m, try)
		if err == nil || !p.tryNext(ctx, m, err) {
			return conn, err
		}
		tried, lastErr = append(tried, m), err
	}
	return nil, lastErr
}

// attempt tries m. acquire has counted the connection, until it is closed.
func (p *Pool) attempt(m *member, try func(*Server) (*Conn, error)) (conn *Conn, err error) {
	defer func() {
		if conn == nil { // also after a panic
			p.release(m)
		}
	}()
	if conn, err = try(m.Server); err != nil {
		return nil, err
	}
	p.recordResult(m, nil)
	conn.release = func() { p.release(m) }
	return conn, nil
}

// tryNext reports whether err is the member's and the login may go to another
// one. Once ctx has ended, err says nothing about the member.
func (p *Pool) tryNext(ctx context.Context, m *member, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	// Without an unsentError the server has seen the credentials. One of another
	// server comes from Verify.
	unsent, ok := errors.AsType[*unsentError](err)
	if !ok || unsent.server != m.Server {
		return false
	}
	if outOfDescriptors(err) {
		return false
	}
	// An error after the connection may be about the client, whose address the
	// server knows: a client that is blocked there must not mark the server down for
	// all others. A probe finds out.
	if call, ok := errors.AsType[*net.OpError](err); ok && call.Op == "dial" {
		p.recordResult(m, err)
	} else {
		m.requestProbe()
	}
	return true
}

// An unsentError is why a server was sent no credentials.
type unsentError struct {
	server *Server
	err    error
}

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// unsent returns the Refusal for a server that was sent no credentials: it cannot
// be reached, or lacks what the client was offered.
func (s *Server) unsent(err error) *proxy.Refusal {
	return s.unavailable(&unsentError{server: s, err: err})
}

func (p *Pool) unavailable(err error) *proxy.Refusal {
	return proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("backend %s, %s: %w", p.Name, p.Protocol, err))
}

// Why there is no member for a login.
var (
	errDrained        = errors.New("every server is drained")
	errNoneLeft       = errors.New("no other server to try")
	errMaxConnections = errors.New("every server has max_connections")
)

// acquire chooses a member that was not tried yet and counts the connection.
func (p *Pool) acquire(account string, tried []*member) (*member, error) {
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
		left = slices.DeleteFunc(left, func(m *member) bool { return m.connections >= p.MaxConnections })
	}
	if len(left) == 0 {
		return nil, errMaxConnections
	}
	m := p.choose(account, left)
	m.connections++
	return m, nil
}

// choose returns the best of members.
func (p *Pool) choose(account string, members []*member) *member {
	if p.Balance == Hash {
		key := sum(account)
		return slices.MaxFunc(members, func(a, b *member) int { return cmp.Compare(mix(key^a.addressHash), mix(key^b.addressHash)) })
	}
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] }) // random among equals
	return slices.MinFunc(members, func(a, b *member) int { return cmp.Compare(a.connections, b.connections) })
}

// sum hashes s: to the same value on every machine, unlike hash/maphash.
func sum(s string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, s)
	return mix(h.Sum64())
}

// mix makes each bit of x count for each bit of the result: the finalizer of
// MurmurHash3. Choosing the member with the highest mix of account and address is
// rendezvous hashing: fair, and when a member goes only its accounts move.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// release ends what acquire began.
func (p *Pool) release(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.connections--
}

func (p *Pool) all() []*member {
	p.once.Do(func() {
		for _, s := range p.Members {
			p.members = append(p.members, &member{Server: s, addressHash: sum(s.Address), probeSoon: make(chan struct{}, 1)})
		}
	})
	return p.members
}

// Drain takes the member at address out of the choice (on), or puts it back. Open
// connections stay.
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

// Accepts reports whether new logins may go to the member: it is up, and not drained.
func (m MemberStatus) Accepts() bool { return m.Up && !m.Drained }

// Status returns the state of each member, in the order of Members.
func (p *Pool) Status() []MemberStatus {
	members := p.all()
	p.mu.Lock()
	defer p.mu.Unlock()
	status := make([]MemberStatus, 0, len(members))
	for _, m := range members {
		status = append(status, MemberStatus{
			Address: m.Address, Known: m.health.probed, Up: m.health.up, Drained: m.drained, Since: m.health.since,
			Connections: m.connections, Err: m.health.err, IdentityRefused: m.identityRefused.Load(),
		})
	}
	return status
}

// Offer returns what all members offered when they were last reached, whether
// they are up or not. A member that was never reached does not count. No
// Mechanisms: none was ever reached.
func (p *Pool) Offer() proxy.Offer {
	members := p.all()
	offers := make([]proxy.Offer, 0, len(members))
	for _, m := range members {
		offers = append(offers, m.Offer())
	}
	return proxy.Intersect(offers...)
}
