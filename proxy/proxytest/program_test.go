package proxytest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// A fakeTB records how a test would end.
type fakeTB struct {
	testing.TB
	skipped, failed string
}

func (v *fakeTB) Helper() {}

func (v *fakeTB) Skipf(format string, args ...any) {
	v.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *fakeTB) Fatalf(format string, args ...any) {
	v.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestNeedSkipsButFailsWhenEverythingMustRun(t *testing.T) {
	skipsButFails(t, "no-such-program is not installed", func(t testing.TB) {
		Need(t, "go", "/bin/sh", "no-such-program")
	})
}

func TestAServerThatIsNotUnpackedIsMissing(t *testing.T) {
	needRoot(t) // else that is what is missing
	t.Setenv("POSTERN_SERVERS", "/no-such-folder")
	skipsButFails(t, "cyrus is not unpacked in /no-such-folder/cyrus: .ci/packages does it", func(t testing.TB) {
		StartCyrus(t, CyrusOptions{})
	})
}

// skipsButFails expects that need skips for the reason given, and fails when
// everything must run.
func skipsButFails(t *testing.T, reason string, need func(testing.TB)) {
	t.Helper()
	for _, test := range []struct{ all, skipped, failed string }{
		{all: "", skipped: reason},
		{all: "1", failed: reason},
	} {
		t.Setenv("POSTERN_ALL", test.all)
		v := &fakeTB{TB: t}
		var wg sync.WaitGroup
		wg.Go(func() {
			need(v)
			t.Error("it goes on although something is missing")
		})
		wg.Wait()
		if v.skipped != test.skipped || v.failed != test.failed {
			t.Errorf("POSTERN_ALL=%q: skipped %q, failed %q", test.all, v.skipped, v.failed)
		}
	}
}
