package service

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/metrics"
	"postern/proxy/certs"
	"postern/proxy/listen"
)

// AskStatus is the request for the Status of the running Postern.
const AskStatus = "status"

// A Status is the state of the running Postern, in the form for output.
type Status struct {
	At       time.Time `json:"at"`
	Hostname string    `json:"hostname"`
	Version  string    `json:"version"`
	Revision string    `json:"revision"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`
	Readyz   string    `json:"readyz"` // what /readyz says
	Drained  bool      `json:"drained"`

	Findings     []Finding           `json:"findings"` // the most urgent first
	Listeners    []ListenerStatus    `json:"listeners"`
	Backends     []ServerStatus      `json:"backends"`            // by backend and protocol
	Providers    []ProviderStatus    `json:"providers,omitempty"` // of tokens
	Passwords    *PasswordStatus     `json:"passwords,omitempty"` // that Postern checks itself
	Certificates []CertificateStatus `json:"certificates"`
	Reload       *Reload             `json:"reload,omitempty"` // the last one since the start
	Guard        GuardStatus         `json:"guard"`
	State        []FileStatus        `json:"state"`
	Backup       time.Time           `json:"backup,omitzero"` // the last one since the start that this process has made
	Descriptors  DescriptorStatus    `json:"descriptors"`
	Before       *ProcessStatus      `json:"before_upgrade,omitempty"` // nil: no process before an upgrade is left
}

// A ListenerStatus is the state of a listener.
type ListenerStatus struct {
	Name        string `json:"name"`
	Protocol    string `json:"protocol"`
	Address     string `json:"address"`
	TLS         string `json:"tls"`   // implicit, starttls or refuse
	State       string `json:"state"` // serving, no backend, no descriptors, stopping
	Connections int    `json:"connections"`
	Sessions    int    `json:"sessions"` // of accounts
}

// A ServerStatus is the state of a server of a backend. The times are those of logins
// that succeeded in the last 15 minutes, 256 at most, and of all servers of the backend and protocol.
type ServerStatus struct {
	DrainedServer

	Error  string  `json:"error,omitempty"` // of the last probe or connection
	Logins int     `json:"logins"`          // that P50 and P95 are of
	P50    float64 `json:"p50_seconds"`
	P95    float64 `json:"p95_seconds"`
}

// A CertificateStatus is the validity of a certificate.
type CertificateStatus struct {
	Name     string    `json:"name"` // certs.AllNames: all names of the source
	Source   string    `json:"source"`
	NotAfter time.Time `json:"not_after"`
}

// A GuardStatus is the state of the login guard. Failures are of the last five minutes.
type GuardStatus struct {
	LearningSeconds float64         `json:"learning_seconds"` // left; 0: it has learnt
	DryRun          bool            `json:"dry_run"`
	FailingAccounts int             `json:"failing_accounts"`
	FailingNetworks int             `json:"failing_networks"`
	FailureRatio    float64         `json:"failure_ratio"`
	RefusedAccounts int             `json:"refused_accounts"` // now
	RefusedNetworks int             `json:"refused_networks"` // now
	Busiest         []RefusedStatus `json:"busiest"`          // of the refused: with the most refused attempts
}

// A RefusedStatus is an account and a network that the guard refuses now.
type RefusedStatus struct {
	Account string       `json:"account,omitempty"` // empty: the name has never logged in, and may be a password
	Hash    string       `json:"hash"`              // of the account
	Network netip.Prefix `json:"network"`
	Limit   string       `json:"limit"`
	Refused int          `json:"refused"` // attempts
	Until   time.Time    `json:"until"`
}

// A FileStatus is the state of a file in state.path.
type FileStatus struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`             // octets; -1: not known
	Broken string `json:"broken,omitempty"` // why it is not used before a restart; empty: it is used
	Shared bool   `json:"shared,omitempty"` // it is no file, but the record of several Posterns
	Away   string `json:"away,omitempty"`   // with Shared: why it is temporarily not available
}

// A DescriptorStatus counts file descriptors.
type DescriptorStatus struct {
	Used    int `json:"used"` // 0: not known
	Allowed int `json:"allowed"`
}

// A ProcessStatus is the state of the processes before the last upgrades.
type ProcessStatus struct {
	PID      int    `json:"pid"` // of the last one; 0: not known
	Sessions int    `json:"sessions"`
	Error    string `json:"error,omitempty"` // why Sessions is not known; empty: it is
}

// NeedsAttention reports whether somebody should look: there is a Finding that is more than
// a Notice.
func (s Status) NeedsAttention() bool {
	return slices.ContainsFunc(s.Findings, func(f Finding) bool { return f.Severity != Notice })
}

// status returns the state of this Postern.
func (s *Service) status(ctx context.Context, _ struct{}) (Status, error) {
	v, hostname := ReadVersion(), ""
	if g := s.current.Load(); g != nil {
		g.countDevices(ctx)
	}
	st := Status{
		At: time.Now(), Version: v.Version, Revision: v.Revision, PID: os.Getpid(), Started: s.started,
		Drained: s.drained.Load(), Findings: s.findings(), Reload: s.lastReload.Load(), Guard: s.guardStatus(),
	}
	st.Ready, st.Readyz = s.readiness()
	st.Descriptors.Used, st.Descriptors.Allowed = openDescriptors()
	if g := s.current.Load(); g != nil {
		hostname = g.cfg.Hostname
		st.Listeners, st.Backends, st.State = g.listenerStatus(), g.serverStatus(), g.fileStatus()
		st.Providers, st.Passwords = g.providerStatus(), g.passwordStatus()
	}
	st.Hostname = hostname
	if at := s.Storage.BackedUp.Load(); at != nil {
		st.Backup = *at
	}
	for _, c := range s.store.Expiry() {
		st.Certificates = append(st.Certificates, CertificateStatus{c.Name, c.Source, c.NotAfter})
	}
	slices.SortStableFunc(st.Certificates, func(a, b CertificateStatus) int { return a.NotAfter.Compare(b.NotAfter) })
	if before := s.predecessor; before != nil && !before.gone.Load() {
		st.Before = &ProcessStatus{PID: before.pid}
		a, err := s.askPredecessor(ctx, false, SessionFilter{})
		st.Before.Sessions = len(a.Sessions)
		if err != nil {
			st.Before.Error = err.Error()
		}
	}
	return st, nil
}

// listenerStatus returns the state of the listeners of g.
func (g *generation) listenerStatus() (all []ListenerStatus) {
	connections, sessions := make(map[string]int), make(map[string]int)
	for _, i := range g.server.Sessions() {
		connections[i.Client.Service]++
		if i.Account != "" {
			sessions[i.Client.Service]++
		}
	}
	bindings := g.bindings.Load()
	if bindings == nil {
		return nil
	}
	served := g.served()
	for _, b := range *bindings {
		l := ListenerStatus{
			Name: b.Service.Name, Protocol: b.Service.Protocol, Address: b.Addr().String(), TLS: "implicit", State: "serving",
			Connections: connections[b.Service.Name], Sessions: sessions[b.Service.Name],
		}
		pools := served[b.Service.Protocol]
		switch {
		case b.Service.TLS == nil:
			l.TLS = "refuse"
		case b.Service.StartTLS:
			l.TLS = "starttls"
		}
		switch {
		case g.draining.Load():
			l.State = "stopping"
		case listen.CheckDescriptors() != nil:
			l.State = "no descriptors"
		case l.TLS != "refuse" && len(g.refusing(pools)) == len(pools):
			l.State = "no backend"
		}
		all = append(all, l)
	}
	return all
}

// serverStatus returns the state of the servers of all backends of g.
func (g *generation) serverStatus() (all []ServerStatus) {
	for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
		n, p50, p95 := g.activity.percentiles(loginsKey{key.name, key.protocol})
		for _, m := range g.pools[key].Status() {
			v := ServerStatus{
				DrainedServer: drainedServer(key, m), Logins: n, P50: p50.Seconds(), P95: p95.Seconds(),
			}
			if m.Err != nil {
				v.Error = reasonOf(m.Err, key, m.Address)
			}
			all = append(all, v)
		}
	}
	return all
}

// fileStatus returns the state of the files in state.path.
func (g *generation) fileStatus() (all []FileStatus) {
	a := g.Storage.Opened.Load()
	if a == nil {
		return nil
	}
	if a.Shared != nil {
		v := FileStatus{Name: a.Shared.Where, Size: -1, Shared: true}
		if err := a.Shared.Err(); err != nil {
			v.Away = err.Error()
		}
		all = append(all, v)
	}
	for _, f := range []struct {
		name string
		err  error
	}{{stored.RecordFile, a.Record.Err()}, {stored.CacheFile, a.Cache.Err()}} {
		v := FileStatus{Name: f.name, Size: -1}
		if info, err := os.Stat(filepath.Join(g.cfg.State.Path, f.name)); err == nil {
			v.Size = info.Size()
		}
		if f.err != nil {
			v.Broken = f.err.Error()
		}
		all = append(all, v)
	}
	return all
}

// guardStatus returns the state of the login guard.
func (s *Service) guardStatus() GuardStatus {
	const most = 3
	g := s.guard.Stats()
	v := GuardStatus{
		LearningSeconds: g.Learning.Seconds(), DryRun: s.dryRun(), FailingAccounts: g.FailingAccounts, FailingNetworks: g.FailingNetworks,
		FailureRatio: metrics.Guard{Failed: g.Failed, Succeeded: g.Succeeded}.FailureRatio(), Busiest: []RefusedStatus{},
	}
	accounts, networks := make(map[string]bool), make(map[netip.Prefix]bool)
	for i, r := range s.guard.List() {
		accounts[r.Hash], networks[r.Network] = true, true
		if i < most {
			v.Busiest = append(v.Busiest, RefusedStatus{r.Account, r.Hash, r.Network, r.Bucket.String(), r.Count, r.Until})
		}
	}
	v.RefusedAccounts, v.RefusedNetworks = len(accounts), len(networks)
	return v
}

// Label returns the certificate's name, or that it is one of a source with many.
func (c CertificateStatus) Label() string {
	if c.Name == certs.AllNames {
		return "one of " + c.Source
	}
	return cmp.Or(c.Name, "-")
}
