package stored

import (
	"strings"
	"testing"

	"postern/configs"
)

func TestBackendsWithoutPOP3HaveNoBrake(t *testing.T) {
	cfg := &configs.Config{Backends: map[string]configs.Backend{"main": {IMAP: &configs.Server{}}}}
	if err := CheckPOP3Backend(cfg, "main"); err == nil || !strings.Contains(err.Error(), "no backend serves POP3") {
		t.Errorf("without a pop3 listener: %v", err)
	}
	cfg.Listeners = []configs.Listener{{Protocol: "pop3"}}
	if err := CheckPOP3Backend(cfg, "main"); err != nil {
		t.Error(err)
	}
}
