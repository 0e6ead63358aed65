package configs

import (
	"strings"
	"testing"
)

// Each case gives tls.acme, or with a beginning of its own all of tls.
func TestMistakesOfCertificatesAreNamed(t *testing.T) {
	const names = "email: ops@example.org, storage: s, names: [mail.example.org]"
	for _, c := range []struct{ name, tls, want string }{
		{"nothing to get", "acme: {email: ops@example.org, storage: s}", `tls.acme: has neither names nor on_demand; give it at least one`},
		{"no e-mail", "acme: {storage: s, names: [mail.example.org]}", `tls.acme.email: "" is not an e-mail address; the CA wants to know whom to tell`},
		{"nowhere to store", "acme: {email: ops@example.org, names: [mail.example.org]}", `tls.acme.storage: missing; write a directory, here or as state.path, or all certificates are got anew at each start`},
		{"directory", "acme: {" + names + ", directory: ca.internal}", `tls.acme.directory: "ca.internal" is not an https URL; leave it out for Let's Encrypt`},
		{"key", "acme: {" + names + ", key: dsa}", `tls.acme.key: "dsa" is not a kind of key; use ecdsa or rsa`},
		{"no name of a CA's", "acme: {email: ops@example.org, storage: s, names: [localhost]}", `tls.acme.names[0]: "localhost" is not a name that a CA could know, such as mail.example.org`},
		{"an address for a name", "acme: {email: ops@example.org, storage: s, names: [192.0.2.1]}", `tls.acme.names[0]: "192.0.2.1" is not a name that a CA could know, such as mail.example.org`},
		{"wildcard", `acme: {email: ops@example.org, storage: s, names: ["*.example.org"]}`, `tls.acme.names[0]: "*.example.org" is a wildcard, which CAs give by challenge: dns-01 only`},
		{"name twice", "acme: {email: ops@example.org, storage: s, names: [a.example.org, A.example.org]}", `tls.acme.names[1]: "a.example.org" is in the list already`},
		{"challenge", "acme: {" + names + ", challenge: http}", `tls.acme.challenge: "http" is not a challenge; use http-01, tls-alpn-01 or dns-01`},
		{"address of another challenge", `acme: {` + names + `, challenge: tls-alpn-01, http_address: ":80"}`, `tls.acme.http_address: belongs to challenge: http-01; remove it, as the challenge is tls-alpn-01`},
		{"address of a listener", `acme: {` + names + `, http_address: ":993"}`, `tls.acme.http_address: ":993" overlaps listeners[0].address in line 3`},
		{"DNS without dns-01", `acme: {` + names + `, dns: {server: "10.0.0.53:53", key_file: k}}`, `tls.acme.dns: belongs to challenge: dns-01; remove it, as the challenge is http-01`},
		{"dns-01 without DNS", "acme: {" + names + ", challenge: dns-01}", `tls.acme.dns: missing; dns-01 needs {server: "10.0.0.53:53", key_file: /etc/postern/tls/dns.key}`},
		{"DNS without a key", `acme: {` + names + `, challenge: dns-01, dns: {server: "10.0.0.53:53"}}`, `tls.acme.dns.key_file: missing; write the path of the key (TSIG) that the server asks for`},
		{"half an account", "acme: {" + names + ", eab: {key_id: k}}", `tls.acme.eab.mac_key_file: missing; write the path of a file with the CA's MAC key in base64url`},
		{"everybody", "acme: {" + names + ", on_demand: {per_hour: 5}}", `tls.acme.on_demand: allows nothing; write names_file or ask, or anybody could have certificates in any name`},
		{"nothing in an hour", "acme: {" + names + ", on_demand: {names_file: n, per_hour: 0}}", `tls.acme.on_demand.per_hour: 0 is out of range; use 1 to 10000`},
		{"prefix", `acme: {` + names + `, on_demand: {names_file: n, prefixes: [mail.]}}`, `tls.acme.on_demand.prefixes[0]: "mail." is not a label; write mail or imap, without a dot`},
		{"prefix of nothing", `acme: {` + names + `, on_demand: {ask: "http://127.0.0.1/", prefixes: [mail]}}`, `tls.acme.on_demand.prefixes: belong to names_file; remove them`},
		{"hook", "acme: {" + names + ", on_demand: {ask: here}}", `tls.acme.on_demand.ask: "here" is not a URL such as http://127.0.0.1:8082/allowed`},
		{"unknown names", "unknown_name: drop", `tls.unknown_name: "drop" is not a way with unknown names; use default or refuse`},
		{"a folder and a file", "certificates: [{dir: live, cert: mail.pem}]", `tls.certificates[0].dir: stands beside cert or key; write an entry for each`},
	} {
		t.Run(c.name, func(t *testing.T) {
			tls := "  " + c.tls + "\n"
			if !strings.HasPrefix(c.tls, "certificates") {
				tls += "  certificates: [{cert: mail.pem, key: mail.key}]\n"
			}
			text := strings.Replace(good, "  certificates:\n    - {cert: mail.pem, key: mail.key}\n", tls, 1)
			_, err := Parse("p.yaml", []byte(text))
			if want := "p.yaml:7: " + c.want; err == nil || err.Error() != want {
				t.Errorf("got\n%v, want\n%s", err, want)
			}
		})
	}
}

func TestACMEHasDefaults(t *testing.T) {
	text := strings.Replace(good, "  certificates:\n    - {cert: mail.pem, key: mail.key}\n",
		"  acme: {email: ops@example.org, on_demand: {names_file: names}}\n", 1) + "state: {path: /var/lib/postern}\n"
	c, err := Parse("/etc/postern/postern.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	a := c.TLS.ACME
	if a.Challenge != "http-01" || a.HTTPAddress != ":80" || a.Key != "ecdsa" || a.Storage != "/var/lib/postern/certs" {
		t.Errorf("without other keys ACME is %+v", a)
	}
	if a.OnDemand.PerHour != 60 || a.OnDemand.NamesFile != "/etc/postern/names" {
		t.Errorf("without other keys on_demand is %+v", a.OnDemand)
	}
}
