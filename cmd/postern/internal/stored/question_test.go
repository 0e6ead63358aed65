package stored

import (
	"path/filepath"
	"strings"
	"testing"

	"postern/configs"
	"postern/proxy/admin"
)

func TestQuestionsWithoutState(t *testing.T) {
	var s admin.Server
	m := &Storage{}
	ForgetUIDLs.Register(&s, m)
	ExportUIDLs.Register(&s, m)
	ImportUIDLs.Register(&s, m)
	cfg := &configs.Config{Control: configs.Control{Socket: filepath.Join(t.TempDir(), "run", "control.sock")}}
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
	_, forget := ForgetUIDLs.One(t.Context(), cfg, Selection{})
	_, export := ExportUIDLs.One(t.Context(), cfg, Selection{})
	_, add := ImportUIDLs.One(t.Context(), cfg, nil)
	for _, err := range []error{forget, export, add} {
		if err == nil || !strings.Contains(err.Error(), errNoRecord.Error()) {
			t.Errorf("got %v, want %v", err, errNoRecord)
		}
	}
}
