package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tokens is a part of a configuration with a provider of each kind.
const tokens = `
state: {path: /var/lib/postern, key_file: /etc/postern/state.key}
passwords: {devices: true}
providers:
  contoso: {kind: microsoft, tenant: contoso.example, client_id: app, certificate: {cert: c.pem, key: c.key}, domains: [Contoso.example]}
  school: {kind: google, key_file: sa.json, domains: [school.example]}
  own: {kind: oauth, token_url: "https://login.example/token", scope: mail, ca: ca.pem, client_id: app, client_secret_file: secret, client_secret_expires: 2027-01-31, domains: [example.org]}
pop3: {delete: trash}
`

const tokenBackends = `
  m365: {token: contoso, names_file: names}
  gmail: {token: school, imap: {address: "192.0.2.1:993", identity: id, tls: starttls}}
  own: {token: own, imap: {address: "192.0.2.2:993"}}
`

func withTokens(t *testing.T, old, replacement string) string {
	t.Helper()
	text := strings.Replace(good, "backends:\n", "backends:"+strings.TrimSuffix(tokenBackends, "\n")+"\n", 1) + "routes: [{backend: main}]\n" + tokens
	changed := strings.Replace(text, old, replacement, 1)
	if old != replacement && changed == text {
		t.Fatalf("%q is not in the configuration", old)
	}
	return changed
}

// Criterion: A kind of provider presets its servers, which the configuration may override.
func TestAProviderPresetsItsServers(t *testing.T) {
	cfg, err := Parse("/etc/postern/postern.yaml", []byte(withTokens(t, "", "")))
	if err != nil {
		t.Fatal(err)
	}
	m := cfg.Backends["m365"]
	if m.IMAP.Address != "outlook.office365.com:993" || m.IMAP.TLS != "implicit" || m.IMAP.Identity != IdentityNone || m.IMAP.Kind != "exchange" || !m.IMAP.SizesAreEstimates {
		t.Errorf("m365.imap: %+v", m.IMAP)
	}
	if m.Submission.Address != "smtp.office365.com:587" || m.Submission.TLS != "starttls" || m.NamesFile != "/etc/postern/names" {
		t.Errorf("m365: %+v, %s", m.Submission, m.NamesFile)
	}
	if got, want := m.AccountConnections, (AccountConnections{Submission: 3}); got != want {
		t.Errorf("m365: account_connections %+v, want %+v", got, want)
	}
	g := cfg.Backends["gmail"]
	if got, want := g.AccountConnections, (AccountConnections{IMAP: 15}); got != want {
		t.Errorf("gmail: account_connections %+v, want %+v", got, want)
	}
	cfg, err = Parse("/etc/postern/postern.yaml", []byte(withTokens(t, "m365: {token: contoso,", "m365: {account_connections: {imap: 9, submission: 0}, token: contoso,")))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cfg.Backends["m365"].AccountConnections, (AccountConnections{IMAP: 9}); got != want {
		t.Errorf("m365: account_connections %+v, want the configured %+v", got, want)
	}
	if g.IMAP.Address != "192.0.2.1:993" || g.IMAP.Identity != IdentityID || g.IMAP.Kind != "gmail" || g.IMAP.TLS != "starttls" || g.Submission != nil {
		t.Errorf("gmail: %+v, %+v", g.IMAP, g.Submission)
	}
	if o := cfg.Backends["own"]; o.IMAP.Kind != "" || o.IMAP.Identity != IdentityID {
		t.Errorf("own: %+v", o.IMAP)
	}
	if p := cfg.Providers["contoso"]; p.Domains[0] != "contoso.example" || p.Certificate.Key != "/etc/postern/c.key" {
		t.Errorf("contoso: %+v", p)
	}
}

func TestEachMistakeOfAProviderIsNamed(t *testing.T) {
	for _, test := range []struct{ old, replacement, want string }{
		{"kind: oauth", "kind: okta", `providers.own.kind: "okta" is not a kind of provider`},
		{"domains: [school.example]", "domains: []", "providers.school.domains: missing"},
		{"[Contoso.example]", `["*"]`, `providers.contoso.domains[0]: "*" is not a domain`},
		{"tenant: contoso.example", "tenant: common", `providers.contoso.tenant: "common" is neither the id nor a domain of one tenant`},
		{"tenant: contoso.example, ", "", "providers.contoso.tenant: missing"},
		{"client_id: app, certificate", "certificate", "providers.contoso.client_id: missing"},
		{"certificate: {cert: c.pem, key: c.key}, ", "", "providers.contoso: has neither certificate"},
		{"certificate: {cert: c.pem, key: c.key}", "certificate: {dir: x}", "providers.contoso.certificate: needs cert and key"},
		{"certificate: {cert: c.pem, key: c.key}", "certificate: {cert: c.pem, key: c.key}, client_secret_file: x", "providers.contoso.client_secret_file: stands beside certificate"},
		{"2027-01-31", "31.1.2027", "providers.own.client_secret_expires:"},
		{"https://login.example/token", "http://login.example/token", "providers.own.token_url: http would send"},
		{"https://login.example/token", "https://u:p@login.example/token", "providers.own.token_url: has a user"},
		{`token_url: "https://login.example/token", `, "", "providers.own.token_url: missing"},
		{"scope: mail, ", "", "providers.own.scope: missing"},
		{"key_file: sa.json, ", "", "providers.school.key_file: missing"},
		{"key_file: sa.json", "key_file: sa.json, client_id: x", "providers.school: client_id"},
		{"kind: oauth", "kind: oauth, tenant: x, key_file: y", "providers.own.tenant: belongs to kind: microsoft"},
		{"token: own, imap", "token: onw, imap", `backends.own.token: "onw" is not a provider; is own meant?`},
		{"  own: {token: own, imap", "  own: {imap", "providers.own: is used by no backend"},
		{"  own: {token: own, imap", "  own: {names_file: x, imap", "backends.own.names_file: belongs to a backend with token"},
		{"passwords: {devices: true}", "", "backends.m365.token: needs passwords that Postern checks"},
		{"devices: true", "devices: true, backend: own", "passwords.backend: backend own takes tokens"},
		{"token: own, imap", "token: own, pop3: {address: \"192.0.2.3:995\"}, imap", "backends.own.pop3: an old POP3 server takes passwords"},
		{"delete: trash", "delete: expunge", "with pop3.delete: expunge, Gmail keeps each message"},
	} {
		_, err := Parse("p.yaml", []byte(withTokens(t, test.old, test.replacement)))
		if err == nil || !strings.Contains(err.Error(), ": "+test.want) && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q for %q:\n%v\nwant %s", test.replacement, test.old, err, test.want)
		}
	}
}

// Criterion: check finds a key or a secret of a provider that every user may read, and warns 30 days before what authenticates ends.
func TestTheFilesOfProvidersAreChecked(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, "c")
	for _, name := range []string{"sa.json", "secret", "names", "state.key"} {
		writeFile(t, dir, name, "x")
	}
	if err := os.Chmod(filepath.Join(dir, "secret"), 0o604); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/etc/postern/state.key", filepath.Join(dir, "state.key"), "ca: ca.pem", "ca: c.pem").Replace(withTokens(t, "", ""))
	_, err := Load(writeFile(t, dir, "postern.yaml", text))
	if err == nil || !strings.Contains(err.Error(), "providers.own.client_secret_file: every user of this machine may read or write") {
		t.Errorf("%v, want a mistake about the mode of the secret", err)
	}
	cfg, err := Parse(filepath.Join(dir, "postern.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	contoso := cfg.Providers["contoso"]
	end, key, known := contoso.CredentialEnd()
	if !known || key != "certificate.cert" {
		t.Fatalf("the end of the certificate: %v, %s, %v", end, key, known)
	}
	for left, want := range map[time.Duration]string{31 * 24 * time.Hour: "", 30 * 24 * time.Hour: "in 30 days: make a new one", 0: "has ended on"} {
		got := ""
		for _, w := range cfg.ProviderWarnings(end.Add(-left)) {
			if w.Key == "providers.contoso.certificate.cert" {
				got = w.Text
			}
		}
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%v before the certificate ends: %q, want %q", left, got, want)
		}
	}
	school := cfg.Providers["school"]
	if _, _, known := school.CredentialEnd(); known {
		t.Error("a key of Google has an end")
	}
	for day, want := range map[string]string{"2026-12-31": "", "2027-01-05": "ends on 2027-01-31, in 26 days", "2027-02-01": "has ended on 2027-01-31"} {
		now, _ := time.Parse(time.DateOnly, day)
		var got []string
		for _, w := range cfg.ProviderWarnings(now) {
			if strings.HasPrefix(w.Key, "providers.own") {
				got = append(got, w.Text)
			}
		}
		if all := strings.Join(got, ", "); (want == "") != (all == "") || !strings.Contains(all, want) {
			t.Errorf("%s: %q, want %q", day, all, want)
		}
	}
}

// Criterion: check warns of a client_secret_file that has the id of Entra's secret and not its value.
func TestTheIDOfASecretIsNoSecret(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range []string{ProviderMicrosoft, ProviderOAuth} {
		for content, isID := range map[string]bool{"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n": true, "abc8Q~aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee": false} {
			writeFile(t, dir, "secret", content)
			c := &Config{Providers: map[string]Provider{"x": {Kind: kind, ClientSecretFile: filepath.Join(dir, "secret")}}}
			got := len(c.ProviderWarnings(time.Now())) == 1
			if want := isID && kind == ProviderMicrosoft; got != want {
				t.Errorf("%s, %q: warned %v, want %v", kind, content, got, want)
			}
		}
	}
}
