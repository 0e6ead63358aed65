package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Criterion: `postern check`, run by root, names the key that the service's user cannot read.
func TestCheckLooksAsTheServicesUser(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to become another user")
	}
	path := configWithCertificate(t, "")
	key := filepath.Join(filepath.Dir(path), "mail.key")
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, complaints := runPostern(t, "check", "--config", path, "--as", "nobody")
	if status != 1 || !strings.Contains(complaints, "as the user nobody:") ||
		!strings.Contains(complaints, "tls.certificates[0].key: open "+key+": permission denied") {
		t.Errorf("check as nobody of a key for root: status %d, %s", status, complaints)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, out, complaints := runPostern(t, "check", "--config", path, "--as", "nobody"); status != 0 {
		t.Errorf("check as nobody of what it may read: status %d, %s%s", status, out, complaints)
	}
	if status, _, complaints := runPostern(t, "check", "--config", path, "--as", "no-such-user"); status != 1 || !strings.Contains(complaints, "unknown user") {
		t.Errorf("check as nobody who exists: status %d, %s", status, complaints)
	}
}

// Criterion: `postern check` explains for each challenge of ACME whether it can work with the listeners.
func TestCheckExplainsChallenges(t *testing.T) {
	http := configWithCertificate(t, `  acme: {email: ops@example.org, names: [mail.example.org], http_address: "127.0.0.1:8402"}`)
	dns := configWithCertificate(t, `  acme: {email: ops@example.org, names: [mail.example.org], challenge: dns-01, dns: {server: "127.0.0.1:53", key_file: mail.key}}`)
	for path, want := range map[string][]string{
		http: {
			"challenge http-01 is used: the CA asks at port 80, and the web server there has to pass /.well-known/acme-challenge/ on to 127.0.0.1:8402 with the Host as it is",
			"challenge tls-alpn-01 could be used: the CA asks at port 443, ",
			"challenge dns-01 could be used: the CA asks the DNS, no port is needed, but a server that takes records (tls.acme.dns)",
		},
		dns: {
			"challenge http-01 could be used: the CA asks at port 80, ",
			"challenge dns-01 is used: the CA asks the DNS, no port is needed; 127.0.0.1:53 is given the records",
		},
	} {
		status, out, complaints := runPostern(t, "check", "--config", path)
		if status != 0 {
			t.Fatalf("check: %s", complaints)
		}
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("check says\n%s, want %q", out, line)
			}
		}
	}
}
