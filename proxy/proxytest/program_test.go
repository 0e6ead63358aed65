package proxytest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// verdict remembers what was said to it.
type verdict struct {
	testing.TB
	skipped, failed string
}

func (v *verdict) Helper() {}

func (v *verdict) Skipf(format string, args ...any) {
	v.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestNeedSkipsButFailsWhenEverythingMustRun(t *testing.T) {
	const want = "no-such-program is not installed"
	for _, test := range []struct{ all, skipped, failed string }{
		{all: "", skipped: want},
		{all: "1", failed: want},
	} {
		t.Setenv("POSTERN_ALL", test.all)
		v := &verdict{TB: t}
		var wg sync.WaitGroup
		wg.Go(func() {
			Need(v, "go", "/bin/sh", "no-such-program")
			t.Error("Need returned although a program is missing")
		})
		wg.Wait()
		if v.skipped != test.skipped || v.failed != test.failed {
			t.Errorf("POSTERN_ALL=%q: skipped %q, failed %q", test.all, v.skipped, v.failed)
		}
	}
}
