package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Findings returns all that is wrong with the certificates now, the worst first. Of
// certificates by ACME only the time of validity is judged, and only of those that are
// loaded: Open loads those of ACME.Names.
func (s *Store) Findings() []Finding {
	now := time.Now()
	set, m := s.current.Load(), s.acme.Load()
	all := slices.Clone(set.findings)
	for _, c := range set.certs {
		all = append(all, c.findings(now)...)
	}
	all = append(all, m.findings(now)...)
	if len(set.certs) == 0 && set.config.ACME == nil && !set.config.Unneeded {
		all = append(all, Finding{Class: NoCertificate, Level: slog.LevelError, Text: "there is no certificate: no client can connect by TLS"})
	}
	for _, name := range set.config.Expected {
		if !set.covers(name, m) {
			all = append(all, Finding{Class: NameNotCovered, Level: slog.LevelWarn, Names: []string{name},
				Text: name + " is in no certificate: clients that use this name refuse the one that they are shown; get one with it"})
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Level, a.Level), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Class, b.Class))
	})
	return all
}

// findings returns the Findings of the certificate at now.
func (c servedCert) findings(now time.Time) (all []Finding) {
	if f := judgeTime(c.Leaf, c.source, now); f.class != "" {
		all = append(all, c.finding(f))
	}
	return append(all, c.atAnyTime(nil)...)
}

func (c servedCert) finding(f fault) Finding {
	return Finding{Class: f.class, Level: f.level, Source: c.source, Origin: c.origin, Path: c.path, Names: names(c.Leaf), Text: f.text, NotAfter: c.Leaf.NotAfter}
}

// atAnyTime returns the Findings of the certificate that do not depend on the time, and
// that of its pair in notLoaded.
func (c servedCert) atAnyTime(notLoaded map[string]Finding) (all []Finding) {
	if f, ok := notLoaded[c.path]; ok {
		all = append(all, f)
	}
	for _, f := range c.faults {
		all = append(all, c.finding(f))
	}
	return all
}

// notLoaded returns the Findings of pairs that were not loaded, by path.
func (s *set) notLoaded() map[string]Finding {
	all := make(map[string]Finding)
	for _, f := range s.findings {
		if f.notLoaded {
			all[f.Path] = f
		}
	}
	return all
}

// covers reports whether a certificate for name is there, or will be obtained. If a hook
// decides about names, it may.
func (s *set) covers(name string, m *manager) bool {
	_, parent, _ := strings.Cut(name, ".")
	if len(s.byName[name])+len(s.byName["*."+parent]) > 0 {
		return true
	}
	a := s.config.ACME
	if a == nil {
		return false
	}
	if slices.Contains(a.Names, name) || slices.Contains(a.Names, "*."+parent) {
		return true
	}
	if a.OnDemand == nil {
		return false
	}
	if a.OnDemand.Ask != "" {
		return true
	}
	if m != nil && m.onDemand != nil {
		return m.onDemand.allowed.has(name)
	}
	f := &nameFile{path: a.OnDemand.NamesFile, prefixes: a.OnDemand.Prefixes}
	if _, err := f.reload(); err != nil {
		return true // not known
	}
	return f.has(name)
}

// findings returns the Findings of the certificates by ACME.
func (m *manager) findings(now time.Time) (all []Finding) {
	if m == nil {
		return nil
	}
	for _, name := range m.config.Names {
		all = append(all, m.judgeName(name, SourceACME, now)...)
	}
	return append(all, m.judgeOnDemand().findings...)
}

// judgeName judges the certificate of a name. Of several it judges the one that ends last.
func (m *manager) judgeName(name, source string, now time.Time) []Finding {
	var last *x509.Certificate
	for _, cert := range m.matching(name) {
		if slices.Contains(names(cert.Leaf), name) && (last == nil || cert.Leaf.NotAfter.After(last.NotAfter)) {
			last = cert.Leaf
		}
	}
	if last == nil {
		return nil // not obtained yet: the log has an error of the CA
	}
	f := judgeTime(last, source, now)
	if f.class == "" {
		return nil
	}
	return []Finding{{Class: f.class, Level: f.level, Source: source, Names: []string{name}, Text: f.text, NotAfter: last.NotAfter}}
}

const (
	repeatFindings = 24 * time.Hour
	judgeEvery     = time.Minute // without a change of a file
	maxLines       = 50          // of one report
)

// A reporter logs Findings when they are new, and above Info again each day.
type reporter struct {
	log        *slog.Logger
	logged     map[findingKey]time.Time
	configured int64 // calls of Configure before the last report
	last       time.Time
}

type findingKey struct {
	class            Class
	path, name, text string
}

// due reports whether s has to be judged although no file has changed.
func (r *reporter) due(s *Store) bool {
	return r.configured != s.configured.Load() || time.Since(r.last) >= judgeEvery
}

func (r *reporter) report(ctx context.Context, s *Store) {
	now, configured := time.Now(), s.configured.Load()
	if configured != r.configured {
		clear(r.logged)
	}
	logged := make(map[findingKey]time.Time)
	lines := 0
	for _, f := range s.Findings() {
		key := findingKey{f.Class, f.Path, strings.Join(f.Names[:min(1, len(f.Names))], ""), f.Text}
		before, known := r.logged[key]
		if known && (f.Level <= slog.LevelInfo || now.Sub(before) < repeatFindings) {
			logged[key] = before
			continue
		}
		logged[key] = now
		if lines++; lines <= maxLines {
			r.line(ctx, f)
		}
	}
	if lines > maxLines {
		r.log.Warn("more certificates need attention: postern certs lists them", "more", lines-maxLines)
	}
	r.logged, r.configured, r.last = logged, configured, now
}

func (r *reporter) line(ctx context.Context, f Finding) {
	attrs := []slog.Attr{slog.String("reason", string(f.Class))}
	if len(f.Names) > 0 {
		attrs = append(attrs, slog.Any("names", f.Names))
	}
	if f.Path != "" {
		attrs = append(attrs, slog.String("file", f.Path))
	}
	attrs = append(attrs, slog.String("err", f.Text))
	switch {
	case f.notLoaded && len(f.Names) > 0:
		r.log.LogAttrs(ctx, f.Level, "certificate not reloaded: the old one is served", attrs...)
	case f.notLoaded:
		r.log.LogAttrs(ctx, f.Level, "certificate not loaded", attrs...)
	case f.Class == Expired:
		r.log.LogAttrs(ctx, f.Level, "certificate has expired", attrs...)
	default:
		r.log.LogAttrs(ctx, f.Level, "certificate needs attention", attrs...)
	}
}
