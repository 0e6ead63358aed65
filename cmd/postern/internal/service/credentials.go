package service

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"postern/configs"
	"postern/metrics"
	"postern/metrics/page"
)

// The states of a provider of tokens.
const (
	providerUnknown       = "not asked yet"
	providerUp            = "up"
	providerDown          = "down"
	providerMisconfigured = "misconfigured" // it refuses the application or its key
)

// A ProviderStatus is the state of a provider of tokens.
type ProviderStatus struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"`
	State    string    `json:"state"`           // up, down, misconfigured, not asked yet
	Since    time.Time `json:"since,omitzero"`  // of down and misconfigured: when the first request failed
	Error    string    `json:"error,omitempty"` // likewise: of the last request
	Tokens   int       `json:"tokens"`          // that are valid now
	Last     time.Time `json:"last_token,omitzero"`
	NotAfter time.Time `json:"not_after,omitzero"` // of what authenticates Postern there; zero: not known
}

// A PasswordStatus counts the device passwords, and what slow hashes take.
type PasswordStatus struct {
	Devices  int `json:"devices"`
	Accounts int `json:"accounts"`    // that have devices
	Expired  int `json:"expired"`     // of Devices: their last day is over
	Foreign  int `json:"foreign_key"` // of Devices: no key of state.key_file made them
	Damaged  int `json:"damaged"`     // of Devices: they cannot be read

	Hashes *HashStatus `json:"hashes,omitempty"` // nil: there is no passwords.file
}

// A HashStatus is what the slow hashes of passwords.file take now.
type HashStatus struct {
	Running int   `json:"running"`
	Waiting int   `json:"waiting"` // logins
	Memory  int64 `json:"memory"`  // octets
	Limit   int64 `json:"limit"`
}

// countEvery is how often all device passwords are counted for metrics and the status page.
const countEvery = 5 * time.Minute

// A provider that nobody has asked is asked firstLook after a start, and one that gave no
// token whenever it may be asked, which is looked at every lookEvery.
const (
	firstLook = 30 * time.Second
	lookEvery = 10 * time.Second
)

// watchCredentials keeps the state of providers and device passwords true while nobody logs
// in.
func (g *generation) watchCredentials(ctx context.Context) {
	look, count := time.NewTimer(firstLook), time.NewTicker(countEvery)
	defer look.Stop()
	defer count.Stop()
	g.countDevices(ctx)
	g.readEnds()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			g.readEnds()
			for _, p := range g.providers {
				p.Look()
			}
			look.Reset(lookEvery)
		case <-count.C:
			g.countDevices(ctx)
		}
	}
}

// countDevices counts the device passwords. If they cannot be read, their number is not
// known.
func (g *generation) countDevices(ctx context.Context) {
	if g.passwords.devices == nil || g.Storage.Devices == nil {
		return
	}
	c, err := g.passwords.devices.Count(ctx)
	if err != nil {
		g.devices.Store(nil)
		return
	}
	g.devices.Store(&c)
}

// credentialEnds returns when what authenticates at each provider ends, by provider, where
// that is known.
func (g *generation) credentialEnds() map[string]time.Time {
	if known := g.ends.Load(); known != nil {
		return *known
	}
	return g.readEnds()
}

// readEnds reads the certificates of the providers.
func (g *generation) readEnds() map[string]time.Time {
	ends := map[string]time.Time{}
	for name, p := range g.cfg.Providers {
		if end, _, known := p.CredentialEnd(); known {
			ends[name] = end
		}
	}
	g.ends.Store(&ends)
	return ends
}

// state returns the state of p in words, and what else its last requests have shown.
func (p provider) state() ProviderStatus {
	s := p.Status()
	v := ProviderStatus{Name: p.Name, Kind: p.config.Kind, State: providerUp, Since: s.Since, Last: s.Last}
	switch {
	case !s.Known():
		v.State = providerUnknown
	case s.Misconfigured():
		v.State = providerMisconfigured
	case s.Fault != nil:
		v.State = providerDown
	}
	if s.Fault != nil {
		v.Error = s.Fault.Reason()
	}
	return v
}

// providerStatus returns the state of the providers of tokens.
func (g *generation) providerStatus() (all []ProviderStatus) {
	ends := g.credentialEnds()
	for _, name := range slices.Sorted(maps.Keys(g.providers)) {
		v := g.providers[name].state()
		v.Tokens, v.NotAfter = g.providers[name].Tokens(), ends[name]
		all = append(all, v)
	}
	return all
}

// passwordStatus returns the state of the passwords that Postern checks; nil: none.
func (g *generation) passwordStatus() *PasswordStatus {
	counted := g.devices.Load()
	if counted == nil && g.passwords.file == nil {
		return nil
	}
	v := &PasswordStatus{}
	if counted != nil {
		*v = PasswordStatus{Devices: counted.Devices(), Accounts: counted.Accounts, Expired: counted.Expired, Foreign: counted.Foreign, Damaged: counted.Damaged}
	}
	if g.passwords.file != nil {
		l := g.slow.Load()
		v.Hashes = &HashStatus{l.Running, l.Waiting, l.Memory, l.Limit}
	}
	return v
}

// findProviders finds providers that give no tokens, and what authenticates there and ends
// soon. Another Postern would see the same.
func (g *generation) findProviders(now time.Time, all *findingList) {
	add := func(severity, text, detail, next string) {
		*all = append(*all, Finding{Severity: severity, Text: text, Detail: detail, Next: next, everywhere: true})
	}
	ends := g.credentialEnds()
	for _, name := range slices.Sorted(maps.Keys(g.providers)) {
		p := g.providers[name].state()
		detail := fmt.Sprintf("for %s: %s", Span(now.Sub(p.Since)), p.Error)
		check := "postern provider check " + name
		switch p.State {
		case providerMisconfigured:
			add(Critical, fmt.Sprintf("provider %s refuses Postern's application: there is no new token for any mailbox", name), detail, check)
		case providerDown:
			severity, left := Critical, "logins at its backends are refused temporarily"
			if n := g.providers[name].Tokens(); n > 0 {
				severity, left = Warning, fmt.Sprintf("tokens that are still valid: %d", n)
			}
			add(severity, fmt.Sprintf("provider %s gives no tokens; %s", name, left), detail, check)
		}
		end, known := ends[name]
		what := "certificate"
		next := fmt.Sprintf("make a new one, add it at the provider, and write it to the file of providers.%s (docs/oauth.md)", name)
		if g.cfg.Providers[name].Certificate == nil {
			what, next = "secret", next+", with its last day"
		}
		switch left := end.Sub(now); {
		case !known || left > configs.CredentialWarning:
		case left <= 0:
			add(Critical, fmt.Sprintf("the %s of provider %s has ended: there are no new tokens", what, name), "on "+end.UTC().Format(dateTime), next)
		default:
			add(Warning, fmt.Sprintf("the %s of provider %s ends in %s", what, name, Span(left)), "on "+end.UTC().Format(dateTime), next)
		}
	}
}

// findDevices finds device passwords that do not work.
func (g *generation) findDevices(all *findingList) {
	c := g.devices.Load()
	if c == nil {
		return
	}
	if c.Damaged > 0 {
		all.add(Warning, fmt.Sprintf("device passwords that cannot be read: %d; their logins are refused temporarily", c.Damaged), "", "postern password list shows their ids; postern password remove, then make the passwords anew")
	}
	if c.Foreign > 0 {
		all.add(Warning, fmt.Sprintf("device passwords that do not work, because state.key_file does not have their key: %d", c.Foreign), "",
			"postern password list shows them with the key -: put that key into the second line of the file, or make them anew")
	}
}

// providerGauges returns the state of the providers for metrics.
func (s *Service) providerGauges() (all []metrics.Provider) {
	g := s.current.Load()
	if g == nil {
		return nil
	}
	for _, p := range g.providerStatus() {
		all = append(all, metrics.Provider{
			Name: p.Name, Known: p.State != providerUnknown, Up: p.State == providerUp, Misconfigured: p.State == providerMisconfigured,
			Tokens: p.Tokens, Last: p.Last, NotAfter: p.NotAfter,
		})
	}
	return all
}

// passwordGauges returns the state of the passwords for metrics.
func (s *Service) passwordGauges() (m metrics.Passwords) {
	g := s.current.Load()
	if g == nil {
		return m
	}
	if c := g.devices.Load(); c != nil {
		m.Devices = map[string]int{"ok": c.Working, "expired": c.Expired, "foreign_key": c.Foreign, "damaged": c.Damaged}
		m.Accounts = c.Accounts
	}
	if g.passwords.file != nil {
		l := g.slow.Load()
		m.Hashes, m.Running, m.Waiting, m.Memory, m.Limit = true, l.Running, l.Waiting, l.Memory, l.Limit
	}
	return m
}

// staleGauges returns for metrics which files of accounts were not loaded.
func (s *Service) staleGauges() map[string]bool {
	all := map[string]bool{}
	if g := s.current.Load(); g != nil {
		for _, f := range g.accountFiles() {
			all[f.key] = f.stale != nil
		}
	}
	return all
}

// providersOnPage returns the providers for the status page.
func (s *Service) providersOnPage() (all []page.Provider) {
	g := s.current.Load()
	if g == nil {
		return nil
	}
	for _, p := range g.providerStatus() {
		v := page.Provider{Name: p.Name, Kind: p.Kind, State: p.State, Since: p.Since, Error: p.Error, Tokens: p.Tokens, Last: p.Last, NotAfter: p.NotAfter}
		v.Class = map[string]string{providerMisconfigured: "bad", providerDown: "warn"}[p.State]
		v.EndsSoon = !p.NotAfter.IsZero() && time.Until(p.NotAfter) < configs.CredentialWarning
		all = append(all, v)
	}
	return all
}

// passwordsOnPage returns the passwords for the status page; nil: Postern checks none.
func (s *Service) passwordsOnPage() *page.Passwords {
	g := s.current.Load()
	if g == nil {
		return nil
	}
	c := g.devices.Load()
	if c == nil {
		return nil
	}
	return &page.Passwords{Devices: c.Devices(), Accounts: c.Accounts, Broken: c.Foreign + c.Damaged, Expired: c.Expired}
}
