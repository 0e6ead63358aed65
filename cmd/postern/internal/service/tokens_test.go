package service

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/configs"
	"postern/proxy/proxytest"
)

func tokenConfig(t *testing.T, dir, tokenURL, domains string) *configs.Config {
	t.Helper()
	cfg, err := configs.Parse(filepath.Join(dir, "test.yaml"), fmt.Appendf(nil, baseConfig+`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {token: own, names_file: names, imap: {address: "127.0.0.1:1", tls: none}}}
providers: {own: {kind: oauth, token_url: %q, scope: mail, client_id: copier, client_secret_file: secret, domains: [%s]}}
passwords: {devices: true}
state: {path: %s, key_file: %s}
control: {socket: off}
`, tokenURL, domains, filepath.Join(dir, "state"), filepath.Join(dir, "state.key")))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Criterion: A reload keeps the tokens of a provider that has not changed, and forgets those of one that has.
func TestAReloadKeepsTokens(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("secret", "s3cret")
	write("names", "scanner@example.org shared@example.org\n")
	write("state.key", "dGhlIGtleSBvZiBhIHRlc3QgaGFzIDMyIG9jdGV0cyE=")
	o := proxytest.StartOAuth(t, map[string]proxytest.OAuthClient{"copier": {Secret: "s3cret"}})
	s := New(tokenConfig(t, dir, o.TokenURL, "example.org"), nil, slog.New(slog.DiscardHandler), nil)
	next := func(domains string) *generation {
		t.Helper()
		g, err := build(tokenConfig(t, dir, o.TokenURL, domains), s)
		if err != nil {
			t.Fatal(err)
		}
		s.current.Store(g)
		return g
	}
	take := func(g *generation) string {
		t.Helper()
		user, token, _, err := g.source("main").Credentials(t.Context(), "scanner@example.org", "imap", false)
		if err != nil {
			t.Fatal(err)
		}
		defer token.Clear()
		return user
	}
	first := next("example.org")
	if got := take(first); got != "shared@example.org" {
		t.Errorf("mailbox %s", got)
	}
	second := next("example.org")
	if take(second); len(o.Requests()) != 1 || second.source("main") != first.source("main") {
		t.Errorf("%d requests for tokens, want 1: the provider is the same", len(o.Requests()))
	}
	write("names", "scanner@example.org other@example.org\n")
	third := next("example.org")
	if got := take(third); got != "other@example.org" || third.source("main") == first.source("main") || third.source("main").Provider != first.source("main").Provider {
		t.Errorf("mailbox %s: the names are not read again, or the tokens are forgotten", got)
	}
	fourth := next("example.org, example.net")
	if before := len(o.Requests()); fourth.source("main").Provider == first.source("main").Provider || take(fourth) == "" || len(o.Requests()) != before+1 {
		t.Error("the provider has changed, and its tokens are those of before")
	}

	write("names", "scanner@example.org\n")
	if _, err := build(tokenConfig(t, dir, o.TokenURL, "example.org"), s); err == nil || !strings.Contains(err.Error(), "backends.main.names_file: line 1:") {
		t.Errorf("%v, want the wrong line of names_file", err)
	}
	write("names", "")
	write("secret", "")
	if _, err := build(tokenConfig(t, dir, o.TokenURL, "example.org"), s); err == nil || !strings.Contains(err.Error(), "providers.own.client_secret_file:") {
		t.Errorf("%v, want the empty secret", err)
	}
}
