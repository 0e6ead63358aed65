package uidl

import (
	"fmt"
	"testing"
)

func TestDovecotFormat(t *testing.T) {
	for _, test := range []struct {
		uid, uidValidity uint32
		want             string
	}{
		{0x16b, 0x22caa, "0000016b00022caa"},
		{1, 1700000000, "000000016553f100"},
		{4294967295, 4294967295, "ffffffffffffffff"},
	} {
		if got := string(Dovecot([]byte("3 "), test.uid, test.uidValidity)); got != "3 "+test.want {
			t.Errorf("Dovecot(%d, %d) = %s, want 3 %s", test.uid, test.uidValidity, got, test.want)
		}
	}
}

func FuzzDovecotFormat(f *testing.F) {
	f.Add(uint32(1), uint32(2))
	f.Fuzz(func(t *testing.T, uid, uidValidity uint32) {
		if got, want := string(Dovecot(nil, uid, uidValidity)), fmt.Sprintf("%08x%08x", uid, uidValidity); got != want {
			t.Errorf("Dovecot(%d, %d) = %s, want %s", uid, uidValidity, got, want)
		}
	})
}
