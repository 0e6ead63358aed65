package service

import (
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
