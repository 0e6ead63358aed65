package service

import (
	"fmt"
	"time"

	"postern/configs"
	"postern/proxy/certs"
)

// CertificateSources returns the sources of certificates in cfg.
func CertificateSources(cfg *configs.Config) certs.Config {
	c := certs.Config{Default: cfg.Hostname, RefuseUnknown: cfg.TLS.UnknownName == "refuse"}
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

// leastLife is the part of a certificate's lifetime below which Postern is degraded.
// Renewal comes with a third left.
const leastLife = 0.05

// expiring returns an error that names a certificate near its end, or nil.
func (s *Service) expiring() error {
	now := time.Now()
	for _, v := range s.store.Expiry() {
		if v.Left(now) >= leastLife {
			continue
		}
		name := v.Name
		if name == certs.AllNames {
			name = "one of " + v.Source
		}
		return fmt.Errorf("the certificate of %s ends at %s", name, v.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
