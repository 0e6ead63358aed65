package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"postern/bridge/uidl"
	"postern/proxy"
)

// Scan makes a memory a Bucket.
func (m *memory) Scan(_ context.Context, prefix string, each func(key string, value []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	var keys []string
	for key := range m.values {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := each(key, m.values[key]); err != nil {
			return err
		}
	}
	return nil
}

// Criterion: the record of UIDLs can be exported, forgotten and imported again, with the same UIDLs.
func TestRecordsComeAndGo(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, cache, record, _ := m.bases(t)
	b.UIDL = format(t, "cyrus")
	before := shown(t, b)
	b.UIDL = uidl.Format{}
	var file bytes.Buffer
	e := json.NewEncoder(&file)
	if err := Export(t.Context(), record, func(r AccountRecord) error { return e.Encode(r) }); err != nil {
		t.Fatal(err)
	}
	if n, err := Forget(t.Context(), cache, record, func(account string) bool { return account == "bob" }); n != 0 || err != nil {
		t.Errorf("bob's: %d, %v", n, err)
	}
	if n, err := Forget(t.Context(), cache, record, func(account string) bool { return account == "alice" }); n != 1 || err != nil {
		t.Errorf("alice's: %d, %v", n, err)
	}
	if got := shown(t, b); got[1] != "0000000100000007" {
		t.Errorf("forgotten they are %v", got)
	}
	var r AccountRecord
	if err := json.Unmarshal(file.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if err := Import(t.Context(), record, r); err != nil {
		t.Fatal(err)
	}
	if got := shown(t, b); got[1] != before[1] || got[3] != before[3] {
		t.Errorf("imported they are %v, want %v", got, before)
	}
	r.Record.Current().UIDValidity = 0
	if Import(t.Context(), record, r) == nil || Import(t.Context(), record, AccountRecord{}) == nil {
		t.Error("nonsense is imported")
	}
	record.values["bob"+inboxOf] = []byte("damaged")
	seen := 0
	if err := Export(t.Context(), record, func(AccountRecord) error { seen++; return nil }); seen != 1 || err == nil || !strings.Contains(err.Error(), "bob") {
		t.Errorf("with a damaged one: %d, %v", seen, err)
	}
}

func TestFormatOfAnOldServer(t *testing.T) {
	shown := []string{"7.1", "7.2"}
	m := newModel("")
	m.deliver(3)
	b := &Backend{LogIn: m.dial(t)}
	in, err := b.Read(t.Context(), &proxy.Login{Account: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	if len(in.UIDs) != 3 || in.UIDValidity != 7 {
		t.Fatalf("%v, %d", in.UIDs, in.UIDValidity)
	}
	if got := uidl.Detect(shown, in.UIDs, in.UIDValidity); got[0].Name != "dovecot-0.99" && got[0].Name != "cyrus" {
		t.Errorf("it is taken for %v", got)
	}
}
