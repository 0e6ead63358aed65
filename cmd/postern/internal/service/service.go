// Package service is the running Postern. It makes a generation of a
// configs.Config (build.go is the only place where configuration becomes
// packages), serves it, replaces it by the next one at a reload, and hands
// everything over to another process at an upgrade.
//
// A Service is what outlives a configuration: open sockets, sessions, and all
// that has memory. A Generation is made of one configuration, and belongs to a
// Service. answer*.go answer the commands at the control socket.
package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"postern/bridge"
	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/stored"
	"postern/metrics"
	"postern/metrics/ledger"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/audit"
	"postern/proxy/authpolicy"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/listen"
)

// A Service is what outlives a configuration: what is open, and what has memory.
// One house after the other stands on it.
type Service struct {
	log         *slog.Logger
	level       *slog.LevelVar
	binary      string // of this process, and of its successor
	path        string // of the configuration; "": there is none to read again
	store       *certs.Store
	metrics     *metrics.Metrics
	page        *page.Page
	ledger      ledgerObserver
	audit       *audit.Log
	observer    proxy.Observer    // all of these
	guard       *guard.Guard      // made with the first house
	advised     *authpolicy.Guard // by a policy server
	policyNonce []byte            // for it
	server      *proxy.Server
	sockets     *listen.Sockets
	Storage     *stored.Storage
	listings    *bridge.ListingMemory
	Ready       func([]proxy.Binding) // told when the doors of the first house are open

	control         *admin.Server
	controlListener net.Listener // where subcommands ask; nil: nowhere

	listeners  map[string]*listen.ProxyListener
	tlsConfigs map[tlsKey]*tls.Config
	endpoints  map[string]openEndpoint // by key of the configuration

	pseudonyms logs.Pseudonyms // of accounts in logs
	redaction  atomic.Pointer[logs.Redaction]

	current        atomic.Pointer[generation] // that is served; nil: none yet
	changes        chan changeRequest         // what is asked for
	wg             sync.WaitGroup             // of what goes on in the background
	stopGeneration context.CancelFunc         // of the present house's part of it
	draining       atomic.Bool

	writers       []func(context.Context) // what writes to the memory
	writing       sync.WaitGroup          // of these
	cancelWriters context.CancelFunc      // ends them

	successor        *successor    // nil: this process serves
	fatal            error         // why it no longer does, if there is no successor
	predecessor      *Peer         // nil: there was none
	predecessorEnded chan struct{} // closed when the predecessor has ended; nil: there was none
	inheritedGuard   []byte        // the guard's snapshot of a predecessor without state
}

// known reports whether a file of the present configuration lists an account.
func (s *Service) known(account string) bool {
	h := s.current.Load()
	return h != nil && h.routing.known(account)
}

// serving is an error if a POP3 session of an account may be open, here or in the
// process that this one has replaced.
func (s *Service) serving(account string) error {
	for _, i := range s.server.Sessions() {
		if i.Account == account && i.Client.Protocol == proxy.POP3 {
			return fmt.Errorf("a POP3 session of %s is open: end it with postern kick --protocol pop3 --account %s", account, account)
		}
	}
	if s.predecessor != nil && !s.predecessor.gone.Load() {
		return errors.New("sessions of the process before the upgrade are open: wait until it has ended")
	}
	return nil
}

// openEndpoint is a web that is open.
type openEndpoint struct {
	address string
	server  *http.Server
}

// A ledgerObserver is the observer of a ledger that is made when the state is
// open.
type ledgerObserver struct{ atomic.Pointer[ledger.Ledger] }

// Observe implements proxy.Observer.
func (k *ledgerObserver) Observe(e proxy.Event) {
	if l := k.Load(); l != nil {
		l.Observe(e)
	}
}

// A tlsKey is what a TLS configuration depends on. It is kept across houses,
// and so are the keys of its session tickets.
type tlsKey struct {
	listener, protocol string
	profile            proxy.Profile
}

// A changeRequest is what somebody asks of the site, and where the outcome is awaited.
type changeRequest struct {
	do   func(background context.Context) error
	done chan<- error
}
