package service

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"postern/configs"
	"postern/proxy/certs"
)

// CertificateSources returns the sources of certificates in cfg.
func CertificateSources(cfg *configs.Config) certs.Config {
	c := certs.Config{Default: cfg.Hostname, RefuseUnknown: cfg.TLS.UnknownName == "refuse", Unneeded: !hasTLS(cfg)}
	if cfg.IsSet("hostname") && !c.Unneeded {
		c.Expected = []string{strings.ToLower(cfg.Hostname)}
	}
	for _, one := range cfg.TLS.Certificates {
		if one.Dir != "" {
			c.Folders = append(c.Folders, one.Dir)
		} else {
			c.Pairs = append(c.Pairs, certs.Pair{Cert: one.Cert, Key: one.Key})
		}
	}
	a := cfg.TLS.ACME
	if a == nil {
		return c
	}
	c.ACME = &certs.ACME{
		Directory: a.Directory, CA: a.CA, Email: a.Email, Profile: a.Profile, Names: a.Names, RSA: a.Key == "rsa",
		Storage: a.Storage, Challenge: a.Challenge, Address: a.HTTPAddress + a.ALPNAddress, // one is empty
	}
	if e := a.EAB; e != nil {
		c.ACME.EAB = &certs.EAB{KeyID: e.KeyID, MACKey: e.MACKeyFile}
	}
	if d := a.DNS; d != nil {
		c.ACME.DNS = certs.DNS{Server: d.Server, Key: d.KeyFile, KeyName: d.KeyName, Algorithm: d.Algorithm, Delay: d.Delay}
	}
	if d := a.OnDemand; d != nil {
		c.ACME.OnDemand = &certs.OnDemand{
			NamesFile: d.NamesFile, Prefixes: d.Prefixes, Ask: d.Ask, PerHour: d.PerHour, Addresses: d.Addresses,
		}
	}
	return c
}

// hasTLS reports whether a listener of cfg has TLS.
func hasTLS(cfg *configs.Config) bool {
	return slices.ContainsFunc(cfg.Listeners, func(l configs.Listener) bool { return l.TLS != "refuse" })
}

// checkCertificates returns the findings about certificates as warnings and as mistakes. A mistake is a certificate that works for no client; Postern
// starts all the same. Without listeners with TLS there is nothing to find.
func (g *generation) checkCertificates() (warnings configs.Errors, mistakes error) {
	if !hasTLS(g.cfg) {
		return nil, nil
	}
	var wrong configs.Errors
	for _, f := range g.store.Findings() {
		about := ""
		switch {
		case f.Class == certs.NameNotCovered || f.Class == certs.FolderLayout || len(f.Names) == 0:
		case f.Source == certs.SourceFolder:
			about = f.Path + ": "
		default:
			about = "the certificate of " + f.Names[0] + ": "
		}
		e := g.cfg.Errorf(keyOf(g.cfg, f), "%s%s", about, f.Text)
		if f.Level >= slog.LevelError {
			wrong = append(wrong, e)
		} else {
			warnings = append(warnings, e)
		}
	}
	if wrong != nil {
		wrong.Sort()
		return warnings, wrong
	}
	return warnings, nil
}

// keyOf returns the key of the configuration that a finding is about.
func keyOf(cfg *configs.Config, f certs.Finding) string {
	if f.Class == certs.NameNotCovered {
		return "hostname"
	}
	for i, c := range cfg.TLS.Certificates {
		key := fmt.Sprintf("tls.certificates[%d]", i)
		switch {
		case f.Origin == "" || c.Dir != f.Origin && c.Cert != f.Origin:
		case c.Dir != "":
			return key + ".dir"
		case f.Class == certs.KeyPermissions || f.Class == certs.KeyMismatch:
			return key + ".key"
		default:
			return key + ".cert"
		}
	}
	if f.Source == certs.SourceACME || f.Source == certs.SourceOnDemand {
		return "tls.acme"
	}
	return "tls.certificates"
}

// findCertificates adds the findings about certificates. Of many certificates in folders or
// on demand with the same fault, one is named.
func (s *Service) findCertificates(all *findingList) {
	type kind struct {
		class  certs.Class
		source string
	}
	more := make(map[kind]int)
	found := s.store.Findings()
	for _, f := range found {
		more[kind{f.Class, f.Source}]++
	}
	for _, f := range found {
		k := kind{f.Class, f.Source}
		n := more[k]
		if f.Level <= slog.LevelInfo || n == 0 {
			continue
		}
		text := "certificates: " + f.Class.Words()
		if len(f.Names) > 0 {
			text = "the certificate of " + f.Names[0]
			switch f.Class {
			case certs.Expired:
				text += " has expired"
			case certs.NotYetValid:
				text += " is not valid yet"
			case certs.ExpiresSoon:
				text += " expires in " + Span(time.Until(f.NotAfter))
			case certs.NameNotCovered:
				text = "no certificate has the hostname " + f.Names[0]
			case certs.NotBetter:
				text += " is served, and not the one in its files"
			default:
				text += ": " + f.Class.Words()
			}
		}
		if n > 1 && (f.Source == certs.SourceFolder || f.Source == certs.SourceOnDemand) {
			text += fmt.Sprintf(" (and %d more of %s)", n-1, f.Source)
			more[k] = 0
		}
		all.add(severityOf(f), text, f.Text, "postern certs")
	}
	if s.certificateValid() != nil {
		all.add(Critical, "no valid certificate", "", "postern certs")
	}
}

// severityOf returns Critical for what works for no client, and Warning for what is about to.
func severityOf(f certs.Finding) string {
	switch {
	case f.Level >= slog.LevelError:
		return Critical
	case f.Class == certs.Expired, f.Class == certs.NotYetValid, f.Class == certs.ExpiresSoon, f.Class == certs.NotBetter:
		return Warning
	}
	return Notice
}
