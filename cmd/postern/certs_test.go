package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/proxytest"
)

// configWithCertificate is a configuration with a certificate, and more of tls, in a folder
// that everybody may enter.
func configWithCertificate(t *testing.T, tls string) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key, _ := proxytest.CertFiles(t)
	for name, from := range map[string]string{"mail.pem": cert, "mail.key": key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(dir, "postern.yaml")
	text := fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
tls:
  certificates: [{cert: mail.pem, key: mail.key}]
%s
backends: {main: {imap: {address: "127.0.0.1:143", tls: none}}}
state: {path: %s}
metrics: {address: off}
`, tls, filepath.Join(dir, "state"))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func runPostern(t *testing.T, args ...string) (status int, out, complaints string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = command(t.Context(), args, &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// Criterion: `postern certs` lists name, source, issuer, expiry and next renewal, whether or not a Postern runs.
func TestCertsAreListed(t *testing.T) {
	path := configWithCertificate(t, `  acme: {email: ops@example.org, names: [new.example.org]}`)
	cfg, err := configs.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^NAME +SOURCE +ISSUER +EXPIRES \(UTC\) +RENEWAL \(UTC\) +STATE\n(.*\n)*localhost +file +\S.* +20\d\d-\d\d-\d\d \d\d:\d\d +- +valid, issuer not in the file, key readable or writable by others\n(.*\n)*new\.example\.org +acme +- +- +- +not obtained yet\n`)
	_, fromFiles, complaints := runPostern(t, "certs", "--config", path)
	if !want.MatchString(fromFiles) {
		t.Errorf("certs without a Postern says\n%s%s", fromFiles, complaints)
	}

	store, err := openStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &admin.Server{Log: slog.New(slog.DiscardHandler)}
	service.AnswerCerts(s, store)
	ln, err := admin.Listen(cfg.Control.Socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), ln) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, asked, complaints := runPostern(t, "certs", "--config", path); asked != fromFiles {
		t.Errorf("the Postern that runs says\n%s%s, want\n%s", asked, complaints, fromFiles)
	}
	if status, _, complaints := runPostern(t, "certs", "renew", "--config", path, "other.example.org"); status != 1 ||
		!strings.Contains(complaints, "other.example.org has no certificate by ACME") {
		t.Errorf("renew of an unknown name: status %d, %s", status, complaints)
	}
}
