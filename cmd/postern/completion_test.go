package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Criterion: shells complete protocols, versions of TLS, levels, and the backends and listeners of the configuration; no accounts.
func TestCompletion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "postern.yaml")
	if err := os.WriteFile(path, []byte(baseConfig+`
listeners: [{protocol: imap, address: ":0"}, {name: old, protocol: pop3, address: ":0"}]
backends: {main: {imap: {address: "192.0.2.1:993"}, submission: {address: "192.0.2.1:465"}}, other: {imap: {address: "192.0.2.2:993"}}}
routes: [{backend: main}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	const files, noFiles = ":0", ":4"
	for _, c := range []struct{ line, want string }{
		{"sessions --protocol|", "imap pop3 submission sieve " + noFiles},
		{"kick --backend|", "main other " + noFiles},
		{"kick --account|", noFiles},
		{"account list --tls|", "1.0 1.1 1.2 1.3 none " + noFiles},
		{"guard explain --listener|", "imap old " + noFiles},
		{"drain|", "main other " + noFiles},
		{"drain|main", "192.0.2.1:993 192.0.2.1:465 " + noFiles},
		{"uidl accept|", "main other " + noFiles},
		{"uidl import --ids|", "courier saved guid filename " + noFiles},
		{"uidl import --maildir|", files},
		{"account show|", noFiles},
		{"log-level|", "debug info warn error " + noFiles},
		{"state backup|", files},
		{"reload --config|", files},
	} {
		words, args, _ := strings.Cut(c.line, "|")
		line := append([]string{"__complete"}, strings.Fields(words)...)
		if last := line[len(line)-1]; !strings.HasPrefix(last, "--") {
			line = append(line, "--config", path)
		} else if last != "--config" {
			line = append(line[:len(line)-1], "--config", path, last)
		}
		line = append(append(line, strings.Fields(args)...), "")
		var out bytes.Buffer
		if status := command(t.Context(), line, &out, t.Output()); status != 0 {
			t.Errorf("%s: exit status %d", c.line, status)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); got != c.want {
			t.Errorf("%s: completed by %q, want %q", c.line, got, c.want)
		}
	}
}
