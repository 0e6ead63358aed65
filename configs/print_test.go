package configs

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
)

// checkPrinted checks that a configuration that was printed, and is read again, is the same.
func checkPrinted(t *testing.T, c *Config) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Print(&out); err != nil {
		t.Fatal(err)
	}
	read, err := Parse(c.file, out.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	same := *c
	same.positions, read.positions = nil, nil
	if !reflect.DeepEqual(&same, read) {
		t.Errorf("printed and read again it is another configuration:\n%+v\n%+v\n%s", same, read, out.String())
	}
	return out.String()
}

// Criterion: check --print shows the configuration with all defaults and with what a kind of provider presets, each with where it comes from; the output is a configuration again, and means the same.
func TestPrintedConfigurationsAreTheSame(t *testing.T) {
	example, err := os.ReadFile("postern.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{good, string(example), withTokens(t, "", "")} {
		cfg, err := Parse("/etc/postern/postern.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		checkPrinted(t, cfg)
	}
	cfg, err := Parse("/etc/postern/postern.yaml", []byte(withTokens(t, "  m365: {token: contoso, names_file: names}", "  m365: {token: contoso, imap: {kind: other, sizes_are_estimates: false}, submission: {}}")))
	if err != nil {
		t.Fatal(err)
	}
	gmail, err := Parse("/etc/postern/postern.yaml", []byte(withTokens(t, "pop3: {delete: trash}\n", "")))
	if err != nil {
		t.Fatal(err)
	}
	if shown := checkPrinted(t, gmail); !strings.Contains(shown, "\n  # delete: trash at backends of kind: google, expunge at others;") {
		t.Errorf("no word about the preset of pop3.delete:\n%s", shown)
	}
	shown := checkPrinted(t, cfg)
	for _, want := range []string{`
  m365:
    imap:
      address: outlook.office365.com:993 # kind: microsoft
      tls: implicit # default
      balance: least # default
      identity: none # kind: microsoft
      kind: other
      sizes_are_estimates: false
    submission:
      address: smtp.office365.com:587 # kind: microsoft
      tls: starttls # kind: microsoft
      balance: least # default
      identity: none # kind: microsoft
      kind: exchange # kind: microsoft
`, "\n    account_connections:\n      submission: 3 # kind: microsoft\n    account_wait: 10s # default\n", "\n    domains: [contoso.example]\n", "\n  login: 1m # default\n", "\n  learning: 72h # default\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no%sin\n%s", want, shown)
		}
	}
}

// Criterion: check --print shows no password of a URL.
func TestPrintHidesPasswords(t *testing.T) {
	cfg, err := Parse("p.yaml", []byte(good+`routes: [{hook: "https://postern:pl4nted@hook.example/"}, {backend: main}]`))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := cfg.Print(&out); err != nil || strings.Contains(out.String(), "pl4nted") || !strings.Contains(out.String(), "hook: https://postern:xxxxx@hook.example/") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
