package relay

import (
	"errors"
	"fmt"
	"runtime/debug"
)

var errPanic = errors.New("panic in a session")

// goRecover runs f in a goroutine of its own. If f panics, goRecover calls
// onPanic, which must end what the caller does. The wait function returns when f
// has ended; after a panic it panics with the same value and the stack of f, so
// that the caller's recover handles it.
func goRecover(f, onPanic func()) (wait func()) {
	done := make(chan string, 1)
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				done <- fmt.Sprintf("%v\n%s", v, debug.Stack())
				onPanic()
			}
		}()
		f()
	}()
	return func() {
		if v, ok := <-done; ok {
			panic(v)
		}
	}
}
