package configs

import (
	"strings"
	"testing"
)

// Criterion: ManageSieve begins TLS by STARTTLS unless the configuration says otherwise, at listeners and at backends; a listener without a server for it, or with less than 30 minutes of idle time, is a mistake.
func TestManageSieve(t *testing.T) {
	const rest = `
tls: {certificates: [{cert: a, key: b}]}
backends: {main: {sieve: {address: "192.0.2.1:4190"}}}
`
	cfg, err := Parse("p.yaml", []byte(`listeners: [{protocol: sieve, address: ":4190"}, {protocol: sieve, address: ":4191", tls: implicit}]`+rest))
	if err != nil {
		t.Fatal(err)
	}
	server := cfg.Backends["main"].Sieve
	if cfg.Listeners[0].TLS != "starttls" || cfg.Listeners[1].TLS != "implicit" || server.TLS != "starttls" || server.Identity != IdentityXCLIENT {
		t.Errorf("listeners %+v, server %+v", cfg.Listeners, server)
	}
	for text, want := range map[string]string{
		"listeners: [{protocol: imap, address: \":993\"}]" + rest:                                                 "imap needs backends.main.imap, which is missing",
		"listeners: [{protocol: sieve, address: \":1\"}]\ntimeouts: {sieve_idle: 10m}" + rest:                     "10m is too short; the least is 30m (RFC 5804 section 1.2)",
		"listeners: [{protocol: sieve, address: \":1\", pop3: {lock: wait}}]" + rest:                              "has no meaning for sieve; remove it",
		"listeners: [{protocol: sieve, address: \":1\"}]" + strings.Replace(rest, "}}}", ", kind: courier}}}", 1): `"courier" is not a kind of server; use dovecot, cyrus, stalwart or other`,
		"listeners: [{protocol: sieve, address: \":1\"}]" + strings.Replace(rest, "}}}", ", identity: id}}}", 1):  `"id" is not a way to tell this server who the client is; use xclient, proxy-v1, proxy-v2 or none`,
		"listeners: [{protocol: sieve, address: \":1\"}]" + strings.Replace(rest, "sieve: ", "imap: ", 1):         "sieve needs backends.main.sieve, which is missing",
	} {
		if _, err := Parse("p.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", text, err, want)
		}
	}
}
