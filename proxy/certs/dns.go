package certs

import (
	"fmt"
	"regexp"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/rfc2136"
	"go.uber.org/zap"
)

// DNS is a DNS server that accepts the records of DNS01 by RFC 2136, signed with
// TSIG.
type DNS struct {
	Server string // "host:port" of the zone's primary server

	// Key is a file with the key: as written by BIND's tsig-keygen, or the secret
	// alone in base64, with KeyName and Algorithm.
	Key       string
	KeyName   string
	Algorithm string // hmac-sha256, ...

	// Delay is how long the zone's other servers take to get a record from Server.
	Delay time.Duration
}

// What tsig-keygen writes.
var (
	bindName      = regexp.MustCompile(`key\s+"?([^"\s{]+)"?\s*\{`)
	bindAlgorithm = regexp.MustCompile(`algorithm\s+"?([^";\s]+)`)
	bindSecret    = regexp.MustCompile(`secret\s+"?([^";\s]+)`)
)

// solver asks Server itself for the zone of a name and for the record: no other
// resolver has to know the zone.
func (d DNS) solver(logger *zap.Logger) (*certmagic.DNS01Solver, error) {
	p, err := d.provider()
	if err != nil {
		return nil, err
	}
	return &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider: p, Resolvers: []string{d.Server}, PropagationDelay: d.Delay, Logger: logger,
	}}, nil
}

func (d DNS) provider() (*rfc2136.Provider, error) {
	text, err := readSecret(d.Key)
	if err != nil {
		return nil, fmt.Errorf("read DNS key: %w", err)
	}
	p := &rfc2136.Provider{Server: d.Server, Key: text, KeyName: d.KeyName, KeyAlg: d.Algorithm}
	if secret := bindSecret.FindStringSubmatch(text); secret != nil {
		p.Key = secret[1]
		if name := bindName.FindStringSubmatch(text); name != nil {
			p.KeyName = name[1]
		}
		if algorithm := bindAlgorithm.FindStringSubmatch(text); algorithm != nil {
			p.KeyAlg = algorithm[1]
		}
	}
	if p.KeyName == "" {
		return nil, fmt.Errorf("DNS key %s: neither the file nor the configuration has a name for it", d.Key)
	}
	return p, nil
}
