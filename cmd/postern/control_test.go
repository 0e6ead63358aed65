package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/state"
)

// Criterion: a subcommand gets the same answer from the Postern that runs and from its files.
func TestAnswersOfTheRunningAndOfTheFilesAreTheSame(t *testing.T) {
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
	m, err := openMemory(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		r := bridge.Recorded{Account: fmt.Sprintf("user%d@example.org", i), Record: uidl.New(7, uidl.Dovecot)}
		if err := bridge.Import(t.Context(), m.record, r); err != nil {
			t.Fatal(err)
		}
	}
	const damaged = "user1@example.org\x00INBOX"
	if err := m.record.Put(t.Context(), damaged, []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	answers := func() (accounts []string, err error) {
		err = exportUIDLs.ask(t.Context(), cfg, selection{}, func(r bridge.Recorded) error {
			accounts = append(accounts, r.Account)
			return nil
		})
		return accounts, err
	}
	compare := func(who string) {
		t.Helper()
		got, err := answers()
		if want := []string{"user0@example.org", "user2@example.org"}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", who, got, want)
		}
		// What cannot be read is told after all that can.
		if err == nil || !strings.Contains(err.Error(), "user1@example.org: record of unique-ids is damaged") {
			t.Errorf("%s: %v", who, err)
		}
	}

	cfg.Control.Socket = filepath.Join(cfg.State.Path, "control.sock")
	h := newHouse(cfg, newSite(nil, slog.New(slog.DiscardHandler), nil))
	h.gid, h.memory = -1, m
	h.control = h.newControl()
	if err := h.openControl(h); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		h.serveControl(t.Context(), h.asking)
	}()
	compare("running")
	_ = h.asking.Close()
	<-served

	if _, err := answers(); err == nil || !strings.Contains(err.Error(), "state is in use by process ") {
		t.Errorf("with the files in other hands: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	compare("its files")
	if n, err := forgetUIDLs.one(t.Context(), cfg, selection{Account: "user1@example.org"}); n != 1 || err != nil {
		t.Errorf("forget of a damaged record: %d, %v", n, err)
	}
	if _, err := answers(); err != nil {
		t.Error(err)
	}
}

func TestQuestionsWithoutState(t *testing.T) {
	var s admin.Server
	m := &memory{}
	forgetUIDLs.answered(&s, m)
	exportUIDLs.answered(&s, m)
	importUIDLs.answered(&s, m)
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
	_, forget := forgetUIDLs.one(t.Context(), cfg, selection{})
	_, export := exportUIDLs.one(t.Context(), cfg, selection{})
	_, add := importUIDLs.one(t.Context(), cfg, nil)
	for _, err := range []error{forget, export, add} {
		if err == nil || !strings.Contains(err.Error(), errNoRecord.Error()) {
			t.Errorf("got %v, want %v", err, errNoRecord)
		}
	}
}

func TestImportsComeInBatches(t *testing.T) {
	var in bytes.Buffer
	lines := json.NewEncoder(&in)
	const accounts = 2*mostOfIt + 1
	for i := range accounts {
		if err := lines.Encode(bridge.Recorded{Account: fmt.Sprint("user", i), Record: uidl.New(7, uidl.Dovecot)}); err != nil {
			t.Fatal(err)
		}
	}
	batches, err := readRecords(&in)
	if err != nil || len(batches) != 3 || len(batches[0]) != mostOfIt || len(batches[2]) != 1 {
		t.Fatalf("%d batches, %v, want 3", len(batches), err)
	}
	m := &memory{record: new(state.Memory)}
	n := 0
	for _, batch := range batches {
		if err := importUIDLs.answer(t.Context(), m, batch, func(some int) error { n += some; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n != accounts {
		t.Errorf("%d accounts are imported, want %d", n, accounts)
	}
	if _, err := readRecords(strings.NewReader(strings.Repeat("x", maxLine+1))); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a line without end gives %v", err)
	}
}

// What is read as a record is the same when it is written and read again.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"account":"a","record":{"uidvalidity":7,"eras":[{"from":1,"format":"uw"}],"named":[{"uid":1,"uidl":"x"}],"past":[3]}}`))
	f.Add([]byte(`{"account":"a","record":{"uidvalidity":7,"eras":[{"from":1,"format":"%v.%u","suffix":"-2"}]}} {}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		first, err := readRecord(line)
		if err != nil {
			return
		}
		written, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := readRecord(written)
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		a, blocks := first.Record.Encode()
		b, again := second.Record.Encode()
		if first.Account != second.Account || !bytes.Equal(a, b) || !reflect.DeepEqual(blocks, again) {
			t.Errorf("%s becomes %+v", line, second)
		}
	})
}
