package certs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"

	"postern/proxy"
)

// OnDemand says for which names a certificate is got when a client first asks
// for one of them: those that NamesFile has or Ask allows, and no other.
type OnDemand struct {
	NamesFile string   // a name or *.name a line; read again when it changes; "": none
	Prefixes  []string // labels, such as imap, that may stand before a name of NamesFile
	Ask       string   // an HTTP URL that is asked with ?domain=NAME: 200 is yes, another 2xx to 4xx no; "": nobody
	PerHour   int      // certificates got at most, renewals aside

	// Addresses are ours as the world sees them: for a name whose DNS has
	// others, nothing is got, because the CA would not find us. None: nobody
	// looks.
	Addresses []netip.Addr
}

const (
	// patience is how long a ClientHello waits at most.
	patience = 7 * time.Second
	// askTime is how long an answer of OnDemand.Ask may take.
	askTime = 4 * time.Second
	// issueTime is how long it may take to get a certificate.
	issueTime = 5 * time.Minute
	// namesEvery is when the names file is looked at again.
	namesEvery = 2 * time.Second

	// After a failure nothing is tried for a name for a while, doubled with
	// each failure. Let's Encrypt allows 5 in an hour for each name.
	firstPause, lastPause = 15 * time.Minute, 24 * time.Hour
	// A no is remembered, and so are names that there was no time for.
	refusedPause, limitedPause = time.Minute, 10 * time.Second
	// maxPauses bounds what is remembered.
	maxPauses = 10_000

	questions, questionsPer = 20, time.Second
	// maxJobs bounds the names that something is done for at once: each may
	// wait for a customer's own DNS.
	maxJobs = 256
)

var errLimited = errors.New("more than per_hour certificates on demand")

// A demand is what clients ask for. A nil one is for nothing.
type demand struct {
	config  OnDemand
	allowed *nameFile
	client  *http.Client
	jobs    chan func(context.Context)
	loaded  atomic.Bool // all that was got before

	mu        sync.Mutex
	pending   map[string]*wish
	pauses    map[string]pause
	held      map[string]struct{} // names that were got, and loaded
	orders    window
	questions window
	warnings  window // of a hook that does not answer
}

// A wish is a name whose certificate is on its way.
type wish struct {
	done    chan struct{}
	allowed atomic.Bool
}

// A pause is how long nothing is tried for a name.
type pause struct {
	until   time.Time
	length  time.Duration
	allowed bool
}

func newDemand(c *OnDemand) (*demand, error) {
	if c == nil {
		return nil, nil
	}
	d := &demand{
		config: *c, client: &http.Client{Timeout: askTime},
		jobs:    make(chan func(context.Context), maxJobs),
		pending: make(map[string]*wish), pauses: make(map[string]pause), held: make(map[string]struct{}),
		orders:    window{most: c.PerHour, length: time.Hour},
		questions: window{most: questions, length: questionsPer},
		warnings:  window{most: 1, length: time.Minute},
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

// onDemand asks for a certificate for name, waits for it, but not for long, and
// reports whether name is allowed to have one. Those that are got without being
// asked for are.
func (m *manager) onDemand(ctx context.Context, name string) bool {
	switch {
	case m == nil:
		return false
	case slices.Contains(m.config.Names, name):
		return true
	case m.demand == nil || !isHostname(name):
		return false
	}
	w, allowed := m.wish(ctx, name)
	if w == nil {
		return allowed
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return w.allowed.Load()
}

// wish returns what is under way for name, having begun it if it may be begun
// now; else whether name is allowed.
func (m *manager) wish(ctx context.Context, name string) (w *wish, allowed bool) {
	d := m.demand
	listed := d.allowed.has(name) || d.config.Ask != "" && !d.loaded.Load() && m.stored(ctx, name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.pending[name]; w != nil {
		return w, false
	}
	now := time.Now()
	if p, ok := d.pauses[name]; ok && now.Before(p.until) {
		return nil, p.allowed
	}
	switch {
	case !listed && d.config.Ask == "":
		m.denied(name, proxy.DeniedUnknown)
		return nil, false
	case len(d.pending) >= maxJobs, !listed && !d.questions.take(now):
		m.denied(name, proxy.DeniedLimit)
		return nil, listed
	}
	w = &wish{done: make(chan struct{})}
	w.allowed.Store(listed)
	d.pending[name] = w
	d.jobs <- func(ctx context.Context) { m.fulfil(ctx, name, w) } // there is room for all that are pending
	return w, listed
}

func (m *manager) denied(name, reason string) {
	m.observer.Observe(proxy.CertificateDenied{Name: name, Reason: reason})
}

// fulfil gets what was wished for.
func (m *manager) fulfil(ctx context.Context, name string, w *wish) {
	d := m.demand
	ctx, cancel := context.WithTimeout(ctx, issueTime)
	defer cancel()
	if !w.allowed.Load() {
		allowed, err := d.ask(ctx, name)
		if err != nil && d.take(&d.warnings) {
			m.log.Warn("nobody says whether a name may have a certificate", "name", name, "err", err)
		}
		w.allowed.Store(allowed)
	}
	var err error
	if w.allowed.Load() {
		err = m.get(ctx, name)
	} else {
		m.denied(name, proxy.DeniedUnknown)
	}
	d.settle(name, w, err)
	switch {
	case errors.Is(err, errLimited):
		m.denied(name, proxy.DeniedLimit)
	case err != nil:
		m.log.Warn("no certificate on demand", "name", name, "err", err)
	}
}

// settle ends a wish.
func (d *demand) settle(name string, w *wish, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	allowed := w.allowed.Load()
	switch last := d.pauses[name]; {
	case !allowed:
		d.pause(name, pause{length: refusedPause})
	case errors.Is(err, errLimited):
		d.pause(name, pause{length: limitedPause, allowed: true})
	case err != nil && last.allowed && last.length >= firstPause:
		d.pause(name, pause{length: min(2*last.length, lastPause), allowed: true})
	case err != nil:
		d.pause(name, pause{length: firstPause, allowed: true})
	default:
		delete(d.pauses, name)
		d.held[name] = struct{}{}
	}
	delete(d.pending, name)
	close(w.done)
}

// pause begins p, and makes room for it.
func (d *demand) pause(name string, p pause) {
	now := time.Now()
	if len(d.pauses) >= maxPauses {
		maps.DeleteFunc(d.pauses, func(_ string, p pause) bool { return now.After(p.until) })
	}
	for old := range d.pauses {
		if len(d.pauses) < maxPauses {
			break
		}
		delete(d.pauses, old)
	}
	p.until = now.Add(p.length)
	d.pauses[name] = p
}

// get loads the certificate of an allowed name, or gets one.
func (m *manager) get(ctx context.Context, name string) error {
	if m.stored(ctx, name) {
		_, err := m.magic.CacheManagedCertificate(ctx, name) // if it has to be renewed, it will be
		return err
	}
	if err := m.pointsHere(ctx, name, m.demand.config.Addresses); err != nil {
		return err
	}
	if !m.demand.take(&m.demand.orders) {
		return errLimited
	}
	return m.magic.ManageSync(ctx, []string{name})
}

// stored reports whether the storage has a certificate of name.
func (m *manager) stored(ctx context.Context, name string) bool {
	return m.magic.Storage.Exists(ctx, certmagic.StorageKeys.SiteCert(m.issuer.IssuerKey(), name))
}

// take is w.take for those who do not hold the lock.
func (d *demand) take(w *window) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return w.take(time.Now())
}

// ask asks whether name may have a certificate.
func (d *demand) ask(ctx context.Context, name string) (bool, error) {
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

// stillAllowed is asked before each renewal: customers leave. Who cannot be
// asked has not said no.
func (m *manager) stillAllowed(ctx context.Context, name string) error {
	d := m.demand
	allowed := d != nil && d.allowed.has(name)
	if d != nil && !allowed && d.config.Ask != "" {
		answer, err := d.ask(ctx, name)
		allowed = answer || err != nil
	}
	if !allowed {
		m.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
		d.forget(name)
		return fmt.Errorf("%s may have no certificate any more", name)
	}
	return m.pointsHere(ctx, name, d.config.Addresses)
}

func (d *demand) forget(name string) {
	if d != nil {
		d.mu.Lock()
		delete(d.held, name)
		d.mu.Unlock()
	}
}

// names returns what was got on demand, in order.
func (d *demand) names() []string {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.held))
}

// serveDemand does what clients ask for until ctx ends.
func (m *manager) serveDemand(ctx context.Context) {
	d := m.demand
	if d == nil {
		<-ctx.Done()
		return
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { m.preload(ctx) })
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-d.jobs:
			running.Go(func() { job(ctx) })
		case <-tick.C:
			if changed, err := d.allowed.reload(); err != nil {
				m.log.Warn("names not reloaded: the old ones hold", "err", err)
			} else if changed {
				d.forgive()
			}
		}
	}
}

// forgive ends all pauses: the operator has changed something.
func (d *demand) forgive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.pauses)
}

// preload loads what was got on demand before, so that it is renewed in time
// also when nobody asks for it. Until it is done, what clients ask for is loaded
// first: after a restart they come all at once, and the hook is asked only so
// often.
func (m *manager) preload(ctx context.Context) {
	defer m.demand.loaded.Store(true)
	prefix := certmagic.StorageKeys.CertsPrefix(m.issuer.IssuerKey())
	keys, err := m.magic.Storage.List(ctx, prefix, false)
	if err != nil {
		return // nothing was got yet
	}
	for _, key := range keys {
		name := key[strings.LastIndexByte(key, '/')+1:]
		d := m.demand
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
		d.held[name] = struct{}{}
		d.mu.Unlock()
	}
}

// A window lets through most in each length of time.
type window struct {
	most   int
	length time.Duration
	taken  []time.Time
}

func (w *window) take(now time.Time) bool {
	w.taken = slices.DeleteFunc(w.taken, func(t time.Time) bool { return now.Sub(t) >= w.length })
	if len(w.taken) >= w.most {
		return false
	}
	w.taken = append(w.taken, now)
	return true
}
