package stored

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"postern/proxy"
	"postern/proxy/state"
)

type lastUse struct{ proxy.StateUsed }

func (l *lastUse) Observe(e proxy.Event) { l.StateUsed = e.(proxy.StateUsed) }

func TestErrorsOfTheStateAreNotThoseOfItsUsers(t *testing.T) {
	file, err := state.Open(filepath.Join(t.TempDir(), "state", "x"), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var last lastUse
	b := &Bucket{name: "uidl", observer: &last, store: file.Bucket("uidl")}
	mine := errors.New("enough")
	ctx := t.Context()
	update := func() error {
		return b.Update(ctx, "alice", func([]byte) ([]byte, error) { return nil, mine })
	}
	scan := func() error {
		return b.Scan(ctx, "", func(string, []byte) error { return mine })
	}
	put := func() error { return b.Put(ctx, "alice", []byte("x")) }
	get := func() error { _, err := b.Get(ctx, "alice"); return err }
	expect := func(operation string, do func() error, fails, told bool) {
		t.Helper()
		last = lastUse{}
		if err := do(); (err != nil) != fails {
			t.Errorf("%s: %v", operation, err)
		}
		if last.Operation != operation || last.Store != "uidl" || (last.Err != nil) != told {
			t.Errorf("%s: told %+v", operation, last)
		}
	}
	expect("update", put, false, false)
	expect("get", get, false, false)
	expect("update", update, true, false)
	expect("scan", scan, true, false)
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	expect("update", put, true, true)
	expect("get", get, true, true)
	gone, leave := context.WithCancel(ctx)
	leave()
	last = lastUse{}
	if _, err := b.Get(gone, "alice"); err == nil || last.Operation != "" {
		t.Errorf("of one who has gone: %v, told %+v", err, last)
	}
}
