package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"slices"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// An Entry is a name and its certificate. A name that has no certificate has neither issuer
// nor times, and so have files that were not loaded: Name is their path.
type Entry struct {
	Name      string    `json:"name"`
	Source    string    `json:"source,omitempty"` // SourceFile, ...; "": there is none
	State     string    `json:"state"`            // in words
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Renewal   time.Time `json:"renewal,omitzero"` // when ACME renews it; files are renewed elsewhere
	Findings  []Finding `json:"findings,omitempty"`
}

// List returns all names that have a certificate, or shall have one, and the files that
// were not loaded, in order. Without Run, the names on demand are those that Preload has
// loaded.
func (s *Store) List(ctx context.Context) []Entry {
	var all []Entry
	now := time.Now()
	set := s.current.Load()
	notLoaded := set.notLoaded()
	for _, c := range set.certs {
		more := c.atAnyTime(notLoaded)
		e := Entry{
			Source: c.source, Issuer: issuer(c.Leaf), NotBefore: c.Leaf.NotBefore, NotAfter: c.Leaf.NotAfter,
			State: state(c.Leaf, more, now), Findings: more,
		}
		if f := judgeTime(c.Leaf, c.source, now); f.class != "" {
			e.Findings = append([]Finding{c.finding(f)}, more...)
		}
		for _, e.Name = range names(c.Leaf) {
			all = append(all, e)
		}
	}
	all = append(all, s.acme.Load().list(ctx, now)...)
	for _, f := range s.Findings() {
		switch {
		case f.Class == NameNotCovered:
			all = append(all, Entry{Name: f.Names[0], State: "NO CERTIFICATE", Findings: []Finding{f}})
		case f.notLoaded && len(f.Names) == 0, f.Class == FolderLayout, f.Class == Unreadable && !f.notLoaded:
			all = append(all, Entry{Name: f.Path, Source: f.Source, State: "NOT LOADED: " + words[f.Class], Findings: []Finding{f}})
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Preload loads the certificates obtained on demand earlier, as Run does.
func (s *Store) Preload(ctx context.Context) {
	if m := s.acme.Load(); m != nil && m.onDemand != nil {
		m.preload(ctx)
	}
}

func issuer(leaf *x509.Certificate) string {
	return shorten(cmp.Or(leaf.Issuer.CommonName, leaf.Issuer.String()))
}

func (m *manager) list(ctx context.Context, now time.Time) (all []Entry) {
	if m == nil {
		return nil
	}
	for _, name := range m.config.Names {
		all = append(all, m.entry(ctx, name, SourceACME, now))
	}
	for _, name := range m.onDemand.names() {
		all = append(all, m.entry(ctx, name, SourceOnDemand, now))
	}
	return all
}

func (m *manager) entry(ctx context.Context, name, source string, now time.Time) Entry {
	l := Entry{Name: name, Source: source, State: "not obtained yet"}
	for _, cert := range m.matching(name) {
		if !slices.Contains(names(cert.Leaf), name) {
			continue
		}
		l.Issuer, l.NotBefore, l.NotAfter = issuer(cert.Leaf), cert.Leaf.NotBefore, cert.Leaf.NotAfter
		l.State, l.Findings = state(cert.Leaf, nil, now), m.judgeName(name, source, now)
		life := l.NotAfter.Sub(l.NotBefore)
		l.Renewal = l.NotAfter.Add(-time.Duration(float64(life) * certmagic.DefaultRenewalWindowRatio))
		if t := m.suggestedRenewal(ctx, name); !t.IsZero() && t.Before(l.Renewal) {
			l.Renewal = t
		}
		break
	}
	return l
}

// suggestedRenewal returns when the CA wants the certificate renewed (RFC 9773),
// or zero.
func (m *manager) suggestedRenewal(ctx context.Context, name string) time.Time {
	b, err := m.magic.Storage.Load(ctx, certmagic.StorageKeys.SiteMeta(m.issuer.IssuerKey(), name))
	if err != nil {
		return time.Time{}
	}
	var stored certmagic.CertificateResource
	var issued acme.Certificate
	if json.Unmarshal(b, &stored) != nil || json.Unmarshal(stored.IssuerData, &issued) != nil || issued.RenewalInfo == nil {
		return time.Time{}
	}
	return issued.RenewalInfo.SelectedTime
}
