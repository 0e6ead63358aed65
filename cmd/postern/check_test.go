package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Criterion: `postern check`, run by root, names the key that the service's user cannot read, also in a folder.
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
		!strings.Contains(complaints, "tls.certificates[0].key: the user nobody may not read "+key) {
		t.Errorf("check as nobody of a key for root: status %d, %s", status, complaints)
	}
	state := filepath.Join(filepath.Dir(path), "state")
	must(t, os.Chmod(key, 0o644), os.Mkdir(state, 0o700), os.Chown(state, serviceUID, serviceUID))
	if status, out, complaints := runPostern(t, "check", "--config", path, "--as", "nobody"); status != 0 {
		t.Errorf("check as nobody of what it may read: status %d, %s%s", status, out, complaints)
	}
	folder := filepath.Join(filepath.Dir(path), "customers")
	pair := filepath.Join(folder, "mail.example.org")
	if err := errors.Join(os.MkdirAll(pair, 0o755), os.Symlink("../../mail.pem", filepath.Join(pair, "fullchain.pem")),
		os.Symlink("../../mail.key", filepath.Join(pair, "privkey.pem")), os.Chmod(key, 0o600)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("{cert: mail.pem, key: mail.key}"), []byte("{dir: customers}"), 1)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, _, complaints := runPostern(t, "check", "--config", path, "--as", "nobody"); status != 1 ||
		!strings.Contains(complaints, "tls.certificates[0].dir: read key of certificate: open "+filepath.Join(pair, "privkey.pem")+
			": permission denied: the user nobody must be able to read the file and to enter its folders") {
		t.Errorf("check as nobody of a folder with a key for root: status %d, %s", status, complaints)
	}
	if status, _, complaints := runPostern(t, "check", "--config", path, "--as", "no-such-user"); status != 1 || !strings.Contains(complaints, "unknown user") {
		t.Errorf("check as nobody who exists: status %d, %s", status, complaints)
	}
}

// Criterion: `postern check` by root names in one run what root finds, such as a port that is in use, and what only the service's user does, such as a key that it may not read.
func TestCheckFindsAllAtOnce(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to become another user")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = ln.Close() }()
	path := configWithCertificate(t, "")
	text, err := os.ReadFile(path)
	must(t, err, os.WriteFile(path, bytes.Replace(text, []byte("metrics: {"), []byte("metrics: {ready_address: "+strconv.Quote(ln.Addr().String())+", "), 1), 0o644))
	must(t, os.Chmod(filepath.Join(filepath.Dir(path), "mail.key"), 0o600))
	status, out, complaints := runPostern(t, "check", "--config", path, "--as", "nobody")
	for _, want := range []string{"tls.certificates[0].key: the user nobody may not read", "metrics.ready_address: listen on " + ln.Addr().String() + ": address already in use by ", "postern: 2 mistakes in the configuration"} {
		if status != 1 || strings.Count(complaints, want) != 1 {
			t.Errorf("status %d, %s%s\nwant %s once", status, out, complaints, want)
		}
	}
}

// Criterion: `postern check` names in one run every file that the service's user may not read: keys and secrets of providers, state.key_file, names_file, the passwd file, and the files of routes and policy.
func TestCheckFindsAllClosedFiles(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to become another user")
	}
	path := configWithCertificate(t, "")
	dir := filepath.Dir(path)
	appendTo(t, path, `
providers: {own: {kind: oauth, token_url: "https://login.example/token", scope: mail, client_id: app, client_secret_file: secret, domains: [example.org]}}
passwords: {devices: true, file: passwd}
policy: {file: policy}
routes: [{file: moved, backend: main}, {backend: own}]
`)
	text, err := os.ReadFile(path)
	changed := bytes.Replace(text, []byte("backends: {"), []byte("backends: {own: {token: own, names_file: names, imap: {address: \"192.0.2.1:993\"}}, "), 1)
	changed = bytes.Replace(changed, []byte("state: {"), []byte("state: {key_file: state.key, "), 1)
	must(t, err, os.WriteFile(path, changed, 0o644))
	files := map[string]string{
		"providers.own.client_secret_file": "secret", "passwords.file": "passwd", "policy.file": "policy", "routes[0].file": "moved",
		"backends.own.names_file": "names", "state.key_file": "state.key",
	}
	for name, content := range map[string]string{
		"secret": "s3cret", "policy": "alice pop3:off", "moved": "alice main", "names": "a@example.org b@example.org",
		"state.key": "dGhlIGtleSBvZiBhIHRlc3QgaGFzIDMyIG9jdGV0cyE=",
		"passwd":    "alice:$6$rounds=1000$E/9dx1OfkQN0nO63$8Vgvf6gp5SXtNcKYXLk6wNQJaVIc4awgaxp.fki/OJ.uR60BkrlE6sS0btHzgHCIMf5Rwm8dmH3W9NimiH6qD0",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	_, _, complaints := runPostern(t, "check", "--config", path, "--as", "nobody")
	for key, name := range files {
		if want := fmt.Sprintf("%s: the user nobody may not read %s (", key, filepath.Join(dir, name)); strings.Count(complaints, want) != 1 {
			t.Errorf("%s\nwant %s once", complaints, want)
		}
	}
}

func appendTo(t *testing.T, path, more string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err, os.WriteFile(path, append(text, more...), 0o644))
}

// Criterion: for each file and folder that the configuration names and the service's user may not read, `postern check` names the command that opens it.
func TestCheckSaysHowToOpenEachFile(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to become another user")
	}
	for key, more := range map[string]string{
		"policy.file":               "policy: {file: FILE}\n",
		"routes[0].file":            "routes: [{file: FILE, backend: main}, {backend: main}]\n",
		"tls.certificates[0].dir":   "",
		"guard.policy.api_key_file": "guard: {policy: {url: \"http://127.0.0.1:1/\", api_key_file: FILE}}\n",
		"the configuration":         "",
	} {
		t.Run(key, func(t *testing.T) {
			path := configWithCertificate(t, "")
			file := filepath.Join(filepath.Dir(path), "closed")
			appendTo(t, path, strings.ReplaceAll(more, "FILE", file))
			must(t, os.WriteFile(file, []byte("# nothing\n"), 0o600))
			mode := "g+r"
			switch key {
			case "the configuration":
				file, key = path, "postern: read configuration"
				must(t, os.Chmod(path, 0o600))
			case "tls.certificates[0].dir":
				text, err := os.ReadFile(path)
				must(t, err, os.Remove(file), os.Mkdir(file, 0o700),
					os.WriteFile(path, bytes.Replace(text, []byte("{cert: mail.pem, key: mail.key}"), []byte("{dir: "+file+"}, {cert: mail.pem, key: mail.key}"), 1), 0o644))
				mode = "g+rx"
			}
			status, out, complaints := runPostern(t, "check", "--config", path, "--as", "nobody")
			if want := fmt.Sprintf("%s: the user nobody may not read %s (", key, file); status != 1 || !strings.Contains(complaints, want) ||
				!strings.Contains(complaints, fmt.Sprintf(": chgrp nogroup %s && chmod %s %[1]s", file, mode)) {
				t.Errorf("status %d, %s%s\nwant %s", status, out, complaints, want)
			}
		})
	}
}

// Criterion: `postern check` names the commands that let the service's user read a file, and they do.
func TestCheckSaysHowToOpenAFile(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root, to become another user")
	}
	path := configWithCertificate(t, "")
	folder := filepath.Join(filepath.Dir(path), "tls")
	key := filepath.Join(folder, "mail.key")
	text, err := os.ReadFile(path)
	must(t, err, os.Mkdir(folder, 0o700), os.Rename(filepath.Join(filepath.Dir(path), "mail.key"), key), os.Chmod(key, 0o600),
		os.WriteFile(path, bytes.ReplaceAll(text, []byte("key: mail.key"), []byte("key: tls/mail.key")), 0o644))
	for _, closed := range []struct{ path, mode, open string }{{folder, "0700", "g+x"}, {key, "0600", "g+r"}} {
		status, _, complaints := runPostern(t, "check", "--config", path, "--as", "nobody")
		command := fmt.Sprintf("chgrp nogroup %s && chmod %s %[1]s", closed.path, closed.open)
		want := fmt.Sprintf("tls.certificates[0].key: the user nobody may not read %s (%s has root:root, mode %s): %s\n", key, closed.path, closed.mode, command)
		if status != 1 || !strings.Contains(complaints, want) {
			t.Fatalf("check as nobody: status %d, %swant %s", status, complaints, want)
		}
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil { // as the operator does
			t.Fatalf("%s: %v, %s", command, err, out)
		}
	}
	if status, _, complaints := runPostern(t, "check", "--config", path, "--as", "nobody"); strings.Contains(complaints, key) {
		t.Errorf("check as nobody after its commands: status %d, %s", status, complaints)
	}
}

// Criterion: a start and a reload log each warning of `postern check` once, with its line and key.
func TestWarningsAreLogged(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	p := launch(t, []string{"protocol: imap, name: scanners, tls_profile: legacy"}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", imap)},
		"limits: {max_connections: 100}\n")
	want := func(n int) {
		t.Helper()
		within(t, patience, "the warnings are logged", func() bool { return len(p.logged(t, "configuration warning")) >= n })
		for _, l := range p.logged(t, "configuration warning") {
			if l.text("key") != "listeners[0].tls_profile" || l.text("line") != "3" || !strings.Contains(l.text("warning"), "accepts TLS 1.0") {
				t.Errorf("a warning is %v", l)
			}
		}
		if got := len(p.logged(t, "configuration warning")); got != n {
			t.Errorf("%d warnings are logged, want %d", got, n)
		}
	}
	want(1)
	_ = p.cmd.Process.Signal(syscall.SIGHUP)
	within(t, patience, "a reload", func() bool { return len(p.logged(t, "configuration loaded")) == 1 })
	want(2)
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

// Criterion: `postern run` ends with exit status 78 after a mistake in the configuration, so that systemd does not start it again and again.
func TestAMistakeInTheConfigurationHasAnExitStatusOfItsOwn(t *testing.T) {
	path := configWithCertificate(t, "")
	appendTo(t, path, "nosuch: key\nrouter: 1\n")
	status, out, complaints := runPostern(t, "run", "--config", path)
	if status != 78 || !strings.Contains(complaints, "postern.yaml:9: nosuch: unknown key") || !strings.HasSuffix(complaints, "\npostern: 2 mistakes in the configuration\n") {
		t.Errorf("status %d, %s%s", status, out, complaints)
	}
	if status, _, _ := runPostern(t, "check", "--config", path); status != 1 {
		t.Errorf("check: status %d", status)
	}
}
