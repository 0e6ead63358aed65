// Package service is the running Postern. It makes a generation of a
// configs.Config (see build.go), serves it, replaces it by the next one at a reload, and hands
// everything over to another process at an upgrade.
//
// A Service has the parts that outlive a configuration: open sockets, sessions, and all
// parts with memory. A generation is made of one configuration, and belongs to a
// Service. The files answer*.go answer the commands at the control socket.
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
	"time"

	"postern/bridge"
	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/stored"
	"postern/metrics"
	"postern/metrics/outcomes"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/audit"
	"postern/proxy/authpolicy"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/listen"
	"postern/proxy/password"
)

// A Service is the part of a running Postern that outlives a configuration: open
// sockets, sessions, and all parts with memory. It serves one generation after the
// other. Storage and Ready may be changed before Serve.
type Service struct {
	log         *slog.Logger
	level       *slog.LevelVar
	binary      string // of this process, and of its successor
	path        string // of the configuration; "": there is no file to read again
	store       *certs.Store
	metrics     *metrics.Metrics
	page        *page.Page
	ledger      ledgerObserver
	activity    activity
	audit       *audit.Log
	outcomes    *outcomes.Memory
	observer    proxy.Observer    // all of these
	guard       *guard.Guard      // a reload replaces the limits, but for the sizes of tables
	policyGuard *authpolicy.Guard // guard, and what a policy server decides
	policyNonce []byte            // for the policy server, if the configuration has none
	server      *proxy.Server
	sockets     *listen.Sockets
	Storage     *stored.Storage
	listings    *bridge.ListingMemory
	slow        *password.Slow // of the hashes of passwords.file
	standing    standing
	Ready       func([]proxy.Binding) // called when the listeners of the first generation are open

	control         *admin.Server
	controlListener net.Listener // of the control socket; nil: it is off

	listeners  map[string]*listen.ProxyListener
	tlsConfigs map[tlsKey]*tls.Config
	endpoints  map[string]openEndpoint // by key of the configuration

	pseudonyms logs.Pseudonyms // of accounts in logs
	redaction  atomic.Pointer[logs.Redaction]

	current        atomic.Pointer[generation] // the one that is served; nil: none yet
	changes        chan changeRequest         // requests, one at a time
	wg             sync.WaitGroup             // of all that runs in the background
	stopGeneration context.CancelFunc         // ends the background work of current
	draining       atomic.Bool
	drained        atomic.Bool // by postern drain --self: /readyz says 503, and clients are served
	started        time.Time
	lastReload     atomic.Pointer[Reload] // nil: none since the start

	writers       []func(context.Context) // work that writes to Storage
	writing       sync.WaitGroup          // waits for writers
	cancelWriters context.CancelFunc      // ends writers

	successor        *successor    // nil: this process serves
	fatal            error         // the error because of which this process no longer serves, without a successor
	predecessor      *Peer         // nil: there was none
	predecessorEnded chan struct{} // closed when the predecessor has ended; nil: there was none
	inheritedGuard   []byte        // the guard's snapshot of a predecessor without state
}

// checkNoSession returns an error if a POP3 session of an account may be open, here or in
// the process that this one has replaced.
func (s *Service) checkNoSession(account string) error {
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

// An openEndpoint is an HTTP endpoint that is served.
type openEndpoint struct {
	address string
	server  *http.Server
}

// A tlsKey has all values on which a tls.Config depends. The tls.Config of a key is kept
// across generations, with its keys of session tickets.
type tlsKey struct {
	listener, protocol string
	profile            proxy.Profile
}

// A changeRequest is a reload or an upgrade. Its error goes to done.
type changeRequest struct {
	do   func(background context.Context) error
	done chan<- error
}
