package certs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"

	"postern/proxy"
)

// OnDemand says for which names a certificate is obtained when a client first
// asks for one of them: those that NamesFile lists or Ask allows.
type OnDemand struct {
	NamesFile string   // a name or *.name a line; read again when it changes; "": none
	Prefixes  []string // labels, such as imap, that may precede a name of NamesFile
	Ask       string   // an HTTP URL that is requested with ?domain=NAME: 200 allows, any other status below 500 denies; "": none
	PerHour   int      // new certificates, without renewals

	// Addresses are the public addresses of this machine. For a name whose DNS has
	// others no certificate is ordered, because the CA would not reach Postern.
	// None: the DNS is not checked.
	Addresses []netip.Addr
}

// The limits of certificates on demand.
const (
	// handshakeWait is how long a ClientHello waits at most.
	handshakeWait = 7 * time.Second
	// askTimeout is the time limit of a request to OnDemand.Ask.
	askTimeout = 4 * time.Second
	// issueTimeout is the time limit of obtaining a certificate.
	issueTimeout = 5 * time.Minute
	// namesInterval is how often the names file is checked for a change.
	namesInterval = 2 * time.Second

	// After a failure nothing is tried for a name for some time, which doubles with
	// each failure. Let's Encrypt allows 5 failures per hour and name.
	firstBackoff, maxBackoff = 15 * time.Minute, 24 * time.Hour
	// A refusal is kept for some time, and so is a name that was over a limit.
	refusedBackoff, limitedBackoff = time.Minute, 10 * time.Second
	// maxBackoffs bounds the names with a backoff.
	maxBackoffs = 10_000

	maxQuestions, questionsWindow = 20, time.Second
	// maxJobs bounds the orders in progress: each may wait for a customer's DNS.
	maxJobs = 256
)

var errLimited = errors.New("more than per_hour certificates on demand")

// An onDemand gets certificates when clients ask for them. A nil one gets none.
type onDemand struct {
	config  OnDemand
	allowed *nameFile
	client  *http.Client
	jobs    chan func(context.Context)
	loaded  atomic.Bool // preload is done

	mu          sync.Mutex
	pending     map[string]*order
	backoffs    map[string]backoff
	issuedNames map[string]struct{} // names with a certificate that is loaded
	issued      window
	questions   window
	warnings    window // about a hook without an answer
}

// An order is a name whose certificate is being obtained.
type order struct {
	done    chan struct{}
	allowed atomic.Bool
}

// A backoff is the time in which nothing is tried for a name.
type backoff struct {
	until   time.Time
	length  time.Duration
	allowed bool
}

func newOnDemand(c *OnDemand) (*onDemand, error) {
	if c == nil {
		return nil, nil
	}
	d := &onDemand{
		config: *c, client: &http.Client{Timeout: askTimeout},
		jobs:    make(chan func(context.Context), maxJobs),
		pending: make(map[string]*order), backoffs: make(map[string]backoff), issuedNames: make(map[string]struct{}),
		issued:    window{limit: c.PerHour, length: time.Hour},
		questions: window{limit: maxQuestions, length: questionsWindow},
		warnings:  window{limit: 1, length: time.Minute},
	}
	d.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.NamesFile != "" {
		d.allowed = &nameFile{path: c.NamesFile, prefixes: c.Prefixes}
		if _, err := d.allowed.reload(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// obtainOnDemand orders a certificate for name, waits at most handshakeWait for
// it, and reports whether name is allowed. Names in the configuration are
// allowed.
func (m *manager) obtainOnDemand(ctx context.Context, name string) bool {
	switch {
	case m == nil:
		return false
	case slices.Contains(m.config.Names, name):
		return true
	case m.onDemand == nil || !isHostname(name):
		return false
	}
	o, allowed := m.order(ctx, name)
	if o == nil {
		return allowed
	}
	timer := time.NewTimer(handshakeWait)
	defer timer.Stop()
	select {
	case <-o.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return o.allowed.Load()
}

// order returns the order in progress for name, and begins one if that is
// possible now. If it is not, order reports whether name is allowed.
func (m *manager) order(ctx context.Context, name string) (o *order, allowed bool) {
	d := m.onDemand
	listed := d.allowed.has(name) || d.config.Ask != "" && !d.loaded.Load() && m.stored(ctx, name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.pending[name]; o != nil {
		return o, false
	}
	now := time.Now()
	if b, ok := d.backoffs[name]; ok && now.Before(b.until) {
		return nil, b.allowed
	}
	switch {
	case !listed && d.config.Ask == "":
		m.reportDenied(name, proxy.DeniedUnknown)
		return nil, false
	case len(d.pending) >= maxJobs, !listed && !d.questions.take(now):
		m.reportDenied(name, proxy.DeniedLimit)
		return nil, listed
	}
	o = &order{done: make(chan struct{})}
	o.allowed.Store(listed)
	d.pending[name] = o
	d.jobs <- func(ctx context.Context) { m.issue(ctx, name, o) } // never blocks: len(pending) is at most maxJobs
	return o, listed
}

func (m *manager) reportDenied(name, reason string) {
	m.observer.Observe(proxy.CertificateDenied{Name: name, Reason: reason})
}

// issue gets the certificate that was ordered, if the name is allowed.
func (m *manager) issue(ctx context.Context, name string, o *order) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	err := m.recovered(func() error { return m.obtainAllowed(ctx, name, o) })
	m.onDemand.finish(name, o, err)
	switch {
	case errors.Is(err, errLimited):
		m.reportDenied(name, proxy.DeniedLimit)
	case err != nil:
		m.log.Warn("no certificate on demand", "name", name, "err", err)
	}
}

// obtainAllowed asks whether name is allowed, unless the order says so, and gets
// the certificate.
func (m *manager) obtainAllowed(ctx context.Context, name string, o *order) error {
	d := m.onDemand
	if !o.allowed.Load() {
		allowed, err := d.hookAllows(ctx, name)
		if err != nil && d.takeLocking(&d.warnings) {
			m.log.Warn("nobody says whether a name may have a certificate", "name", name, "err", err)
		}
		o.allowed.Store(allowed)
	}
	if !o.allowed.Load() {
		m.reportDenied(name, proxy.DeniedUnknown)
		return nil
	}
	return m.obtain(ctx, name)
}

// recovered calls f and returns a panic of it as an error: no connection's recover
// covers the goroutines of a manager.
func (m *manager) recovered(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
			m.observer.Observe(proxy.Panicked{Value: v, Stack: debug.Stack()})
		}
	}()
	return f()
}

// finish ends an order with its result.
func (d *onDemand) finish(name string, o *order, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	allowed := o.allowed.Load()
	switch last := d.backoffs[name]; {
	case !allowed:
		d.setBackoff(name, backoff{length: refusedBackoff})
	case errors.Is(err, errLimited):
		d.setBackoff(name, backoff{length: limitedBackoff, allowed: true})
	case err != nil && last.allowed && last.length >= firstBackoff:
		d.setBackoff(name, backoff{length: min(2*last.length, maxBackoff), allowed: true})
	case err != nil:
		d.setBackoff(name, backoff{length: firstBackoff, allowed: true})
	default:
		delete(d.backoffs, name)
		d.issuedNames[name] = struct{}{}
	}
	delete(d.pending, name)
	close(o.done)
}

// setBackoff begins b. If there are too many backoffs, expired ones and then
// arbitrary ones are dropped.
func (d *onDemand) setBackoff(name string, b backoff) {
	now := time.Now()
	if len(d.backoffs) >= maxBackoffs {
		maps.DeleteFunc(d.backoffs, func(_ string, b backoff) bool { return now.After(b.until) })
	}
	for old := range d.backoffs {
		if len(d.backoffs) < maxBackoffs {
			break
		}
		delete(d.backoffs, old)
	}
	b.until = now.Add(b.length)
	d.backoffs[name] = b
}

// obtain loads the certificate of an allowed name from the storage, or orders it
// from the CA.
func (m *manager) obtain(ctx context.Context, name string) error {
	if m.stored(ctx, name) {
		_, err := m.magic.CacheManagedCertificate(ctx, name) // renewed if it is due
		return err
	}
	if err := m.pointsHere(ctx, name, m.onDemand.config.Addresses); err != nil {
		return err
	}
	if !m.onDemand.takeLocking(&m.onDemand.issued) {
		return errLimited
	}
	return m.magic.ManageSync(ctx, []string{name})
}

// stored reports whether the storage has a certificate for name.
func (m *manager) stored(ctx context.Context, name string) bool {
	return m.magic.Storage.Exists(ctx, certmagic.StorageKeys.SiteCert(m.issuer.IssuerKey(), name))
}

// takeLocking locks d.mu and calls w.take.
func (d *onDemand) takeLocking(w *window) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return w.take(time.Now())
}

// hookAllows asks the hook whether name may have a certificate.
func (d *onDemand) hookAllows(ctx context.Context, name string) (bool, error) {
	u, err := url.Parse(d.config.Ask)
	if err != nil {
		return false, fmt.Errorf("ask: %w", err)
	}
	q := u.Query()
	q.Set("domain", name)
	u.RawQuery = q.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, fmt.Errorf("ask: %w", err)
	}
	response, err := d.client.Do(r)
	if err != nil {
		return false, fmt.Errorf("ask: %w", err)
	}
	_ = response.Body.Close()
	if response.StatusCode >= http.StatusInternalServerError {
		return false, fmt.Errorf("ask: %s", response.Status)
	}
	return response.StatusCode == http.StatusOK, nil
}

// stillAllowed is called before each renewal, because customers leave. A hook
// without an answer does not deny.
func (m *manager) stillAllowed(ctx context.Context, name string) error {
	d := m.onDemand
	allowed := d != nil && d.allowed.has(name)
	if d != nil && !allowed && d.config.Ask != "" {
		answer, err := d.hookAllows(ctx, name)
		allowed = answer || err != nil
	}
	if !allowed {
		m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
		d.forget(name)
		return fmt.Errorf("%s may have no certificate any more", name)
	}
	return m.pointsHere(ctx, name, d.config.Addresses)
}

func (d *onDemand) forget(name string) {
	if d != nil {
		d.mu.Lock()
		delete(d.issuedNames, name)
		d.mu.Unlock()
	}
}

// names returns the names that were obtained on demand, in order.
func (d *onDemand) names() []string {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.issuedNames))
}

// runOnDemand processes orders until ctx ends.
func (m *manager) runOnDemand(ctx context.Context) {
	d := m.onDemand
	if d == nil {
		<-ctx.Done()
		return
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		if err := m.recovered(func() error { m.preload(ctx); return nil }); err != nil {
			m.log.Warn("certificates on demand not loaded", "err", err)
		}
	})
	tick := time.NewTicker(namesInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-d.jobs:
			running.Go(func() { job(ctx) })
		case <-tick.C:
			var changed bool
			err := m.recovered(func() (err error) { changed, err = d.allowed.reload(); return err })
			if err != nil {
				m.log.Warn("names not reloaded: the old ones hold", "err", err)
			} else if changed {
				d.clearBackoffs()
			}
		}
	}
}

// clearBackoffs ends all backoffs, because the operator has changed the names.
func (d *onDemand) clearBackoffs() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.backoffs)
}

// preload loads the certificates that were obtained on demand earlier, so that
// they are renewed in time even if no client asks for them. Until it is done, an
// order loads its certificate from the storage first: after a restart all clients
// come at once, and the hook is asked only so often.
func (m *manager) preload(ctx context.Context) {
	defer m.onDemand.loaded.Store(true)
	prefix := certmagic.StorageKeys.CertsPrefix(m.issuer.IssuerKey())
	keys, err := m.magic.Storage.List(ctx, prefix, false)
	if err != nil {
		return // no certificate was obtained yet
	}
	for _, key := range keys {
		name := key[strings.LastIndexByte(key, '/')+1:]
		d := m.onDemand
		if ctx.Err() != nil {
			return
		}
		if slices.Contains(m.config.Names, name) || !isHostname(name) || d.config.Ask == "" && !d.allowed.has(name) {
			continue
		}
		if len(m.matching(name)) == 0 {
			if _, err := m.magic.CacheManagedCertificate(ctx, name); err != nil {
				m.log.Warn("certificate not loaded", "name", name, "err", err)
				continue
			}
		}
		d.mu.Lock()
		d.issuedNames[name] = struct{}{}
		d.mu.Unlock()
	}
}

// A window allows at most limit events in any time of length. Other than a token
// bucket, it never allows more than PerHour in an hour.
type window struct {
	limit  int
	length time.Duration
	times  []time.Time
}

func (w *window) take(now time.Time) bool {
	w.times = slices.DeleteFunc(w.times, func(t time.Time) bool { return now.Sub(t) >= w.length })
	if len(w.times) >= w.limit {
		return false
	}
	w.times = append(w.times, now)
	return true
}
