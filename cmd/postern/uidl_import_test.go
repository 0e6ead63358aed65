package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/stored"
	"postern/proxy/state"
)

func TestImportsComeInBatches(t *testing.T) {
	var in bytes.Buffer
	lines := json.NewEncoder(&in)
	const accounts = 2*maxAccounts + 1
	for i := range accounts {
		if err := lines.Encode(bridge.AccountRecord{Account: fmt.Sprint("user", i), Record: uidl.New(7, uidl.Dovecot)}); err != nil {
			t.Fatal(err)
		}
	}
	export, err := readRecords(&in)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Collect(batches(export))
	if len(all) != 3 || len(all[0]) != maxAccounts || len(all[2]) != 1 {
		t.Fatalf("%d batches, want 3", len(all))
	}
	m := &stored.Storage{Record: new(state.Memory)}
	n := 0
	for _, batch := range all {
		if err := stored.ImportUIDLs.Answer(t.Context(), m, batch, func(some int) error { n += some; return nil }); err != nil {
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
