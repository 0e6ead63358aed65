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

// An Entry is a name and its certificate. A name that ACME has no certificate for
// has neither issuer nor times.
type Entry struct {
	Name      string    `json:"name"`
	Source    string    `json:"source"` // SourceFile, ...
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Renewal   time.Time `json:"renewal,omitzero"` // when ACME renews it; files are renewed elsewhere
}

// List returns all names that have a certificate, or shall have one, in order.
// Without Run, the names on demand are those that Preload has loaded.
func (s *Store) List(ctx context.Context) []Entry {
	var all []Entry
	add := func(name, source string, leaf *x509.Certificate) {
		all = append(all, Entry{name, source, issuer(leaf), leaf.NotBefore, leaf.NotAfter, time.Time{}})
	}
	for _, c := range s.current.Load().certs {
		for _, name := range names(c.Leaf) {
			add(name, c.source, c.Leaf)
		}
	}
	all = append(all, s.acme.Load().list(ctx)...)
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
	return cmp.Or(leaf.Issuer.CommonName, leaf.Issuer.String())
}

func (m *manager) list(ctx context.Context) (all []Entry) {
	if m == nil {
		return nil
	}
	for _, name := range m.config.Names {
		all = append(all, m.entry(ctx, name, SourceACME))
	}
	for _, name := range m.onDemand.names() {
		all = append(all, m.entry(ctx, name, SourceOnDemand))
	}
	return all
}

func (m *manager) entry(ctx context.Context, name, source string) Entry {
	l := Entry{Name: name, Source: source}
	for _, cert := range m.matching(name) {
		if !slices.Contains(names(cert.Leaf), name) {
			continue
		}
		l.Issuer, l.NotBefore, l.NotAfter = issuer(cert.Leaf), cert.Leaf.NotBefore, cert.Leaf.NotAfter
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
