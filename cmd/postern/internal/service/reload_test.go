package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/proxytest"
)

// An address that goes from one part of the configuration to another would be
// closed by the one, or served by both.
func TestReloadRefusesAnAddressThatChangesHands(t *testing.T) {
	cert, key, _ := proxytest.CertFiles(t)
	imap, _ := inMemory(t, "m", "alice")
	one, two, three := proxytest.FreeAddress(t), proxytest.FreeAddress(t), proxytest.FreeAddress(t)
	text := func(listener, metrics, ready string) []byte {
		return fmt.Appendf(nil, `
hostname: mail.example.org
listeners: [{protocol: imap, address: %q}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}}}
metrics: {address: %q, ready_address: %q}
control: {socket: off}
`, listener, cert, key, imap, metrics, ready)
	}
	path := filepath.Join(t.TempDir(), "postern.yaml")
	write := func(text []byte) *configs.Config {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := configs.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	cfg := write(text(one, two, three))
	store, err := certs.New(CertificateSources(cfg))
	if err != nil {
		t.Fatal(err)
	}
	r := startServiceWith(t, cfg, store, t.Output())
	r.service.path = path
	reload := func(text []byte) error {
		write(text)
		done := make(chan error, 1)
		r.service.changes <- changeRequest{r.service.reload, done}
		return <-done
	}
	for name, swapped := range map[string][]byte{
		"a listener and metrics": text(two, one, three), "metrics and readiness": text(one, three, two),
	} {
		err := reload(swapped)
		if mistakes, _ := errors.AsType[configs.Errors](err); len(mistakes) != 2 || !strings.Contains(err.Error(), "is still open for another part") {
			t.Errorf("%s change places: %v", name, err)
		}
	}
	for _, step := range [][]byte{text(one, "off", three), text(one, "off", two), text(one, three, two)} {
		if err := reload(step); err != nil {
			t.Errorf("step by step: %v", err)
		}
	}
}
