package inbox

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// FuzzRow: whatever a server sends, a message is what it sent for it or none.
func FuzzRow(f *testing.F) {
	f.Add("* 1 FETCH (UID 11 BODY[] {3}\r\nabc)\r\nF1 OK x\r\n")
	f.Add("* 1 FETCH (BODY[] {3}\r\nabc FLAGS (\\Seen) UID 11)\r\nF1 OK x\r\n")
	f.Add("* 1 FETCH (ENVELOPE ({3}\r\na)b {4}\r\nF1 O))\r\n* 1 FETCH (UID 11 BODY[] \"a\\\"bc\")\r\nF1 OK x\r\n")
	f.Add("* 1 FETCH (UID 11 BODY[] NIL)\r\n* BYE x\r\nF1 NO [LIMIT] x\r\n")
	f.Add("* VANISHED {3}\r\nabc\r\n+ x\r\nF1 OK\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			go func() { _, _ = io.Copy(io.Discard, far) }()
			_, _ = io.WriteString(far, answer)
			_ = far.Close()
		})
		in := New(near, "IMAP4rev1 UIDPLUS", Options{Timeout: time.Minute})
		tag, err := in.Fetch(Body, Request{UID: 11})
		if err == nil {
			var r *FetchResponse
			if r, err = in.Await(t.Context(), 11, tag); err == nil {
				whole := ""
				for r.Section.Left > 0 {
					chunk, err := r.Section.Peek(1)
					if err != nil {
						break
					}
					whole += string(chunk)
					r.Section.Discard(len(chunk))
				}
				if r.Section.literal && !strings.Contains(answer, whole) {
					t.Errorf("%q gives %q", answer, whole)
				}
			}
		}
		in.Discard()
		wg.Wait()
	})
}
