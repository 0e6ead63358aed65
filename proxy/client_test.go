package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// feed returns a Conn whose client sends each piece in a write of its own, and
// leaves.
func feed(t testing.TB, pieces ...string) *Conn {
	client, server := net.Pipe()
	go func() {
		for _, p := range pieces {
			if _, err := io.WriteString(client, p); err != nil {
				return
			}
		}
		client.Close()
	}()
	t.Cleanup(func() { client.Close(); server.Close() })
	return NewConn(server, Client{}, nil, 0)
}

func TestReadLineIsBounded(t *testing.T) {
	c := feed(t, "short\r\n", strings.Repeat("x", 3000)+"\r\nnext\n", "last, without end")
	want := []struct {
		line string
		err  error
	}{{"short\r\n", nil}, {"", ErrLineTooLong}, {"next\n", nil}, {"", io.EOF}}
	for i, w := range want {
		line, err := c.ReadLine(1000)
		if string(line) != w.line || !errors.Is(err, w.err) {
			t.Errorf("line %d is %q, %v, want %q, %v", i+1, line, err, w.line, w.err)
		}
	}
	if len(c.buf) > 1024 {
		t.Errorf("the buffer has grown to %d octets for lines of 1000", len(c.buf))
	}
}

func TestReadLineTakesExactlyItsLimit(t *testing.T) {
	for _, limit := range []int{10, 511, 512, 513, 2000} {
		c := feed(t, strings.Repeat("x", limit-2)+"\r\n"+strings.Repeat("y", limit-1)+"\r\n")
		if line, err := c.ReadLine(limit); len(line) != limit || err != nil {
			t.Errorf("line of %d octets: %d, %v", limit, len(line), err)
		}
		if line, err := c.ReadLine(limit); !errors.Is(err, ErrLineTooLong) {
			t.Errorf("line of %d octets with a limit of %d: %q, %v", limit+1, limit, line, err)
		}
	}
}

func TestLineWithoutEndIsAFlood(t *testing.T) {
	c := feed(t, strings.Repeat("x", 2*maxSkip))
	if _, err := c.ReadLine(100); !errors.Is(err, ErrFlood) {
		t.Errorf("ReadLine: %v, want %v", err, ErrFlood)
	}
}

func TestReadGivesWhatIsBufferedFirst(t *testing.T) {
	c := feed(t, "line\r\nliteral", "more")
	if _, err := c.ReadLine(100); err != nil {
		t.Fatal(err)
	}
	if got := c.Buffered(); got != len("literal") {
		t.Errorf("Buffered() = %d", got)
	}
	rest, err := io.ReadAll(c)
	if string(rest) != "literalmore" || err != nil {
		t.Errorf("read %q, %v", rest, err)
	}
	if got := c.Received(); got != int64(len("line\r\nliteralmore")) {
		t.Errorf("Received() = %d", got)
	}
}

func TestConsumedOctetsAreWiped(t *testing.T) {
	c := feed(t, "PASS hunter2\r\nPASS", " hunter2\r\n", strings.Repeat("hunter2", 100)+"\r\n", "NOOP\r\n")
	for range 4 {
		if _, err := c.ReadLine(1000); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Contains(c.buf[:cap(c.buf)], []byte("hunter")) {
		t.Errorf("the buffer still holds %q", bytes.Trim(c.buf, "\x00"))
	}
}

func TestWaitKeepsOnlySoMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := feed(t, strings.Repeat(strings.Repeat("x", 98)+"\r\n", 100))
		begun := time.Now()
		if err := c.Wait(t.Context(), time.Second); err != nil || time.Since(begun) != time.Second {
			t.Errorf("Wait: %v after %v", err, time.Since(begun))
		}
		if got := c.Buffered(); got > 4<<10 {
			t.Errorf("%d octets kept", got)
		}
		for i := range 100 {
			if line, err := c.ReadLine(100); len(line) != 100 {
				t.Fatalf("line %d: %q, %v", i, line, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Wait(ctx, time.Minute); err == nil || ctx.Err() != nil {
			t.Errorf("Wait: %v after the client left", err)
		}
	})
}

func TestInterruptCannotBeUndone(t *testing.T) {
	c := feed(t, "")
	cause := NewRefusal(Kicked, nil)
	c.Interrupt(cause)
	if err := c.SetReadDeadline(time.Now().Add(time.Hour)); !errors.Is(err, cause) {
		t.Errorf("SetReadDeadline: %v", err)
	}
	if _, err := c.ReadLine(100); !errors.Is(err, cause) {
		t.Errorf("ReadLine: %v", err)
	}
}

func TestClientThatTakesNothingIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		c := NewConn(server, Client{}, nil, time.Minute)
		begun := time.Now()
		if _, err := io.WriteString(c, "hello"); err == nil {
			t.Error("a write that nobody reads succeeded")
		}
		if got := time.Since(begun); got != time.Minute {
			t.Errorf("gave up after %v", got)
		}
	})
}

func TestSecretShowsItselfToNobody(t *testing.T) {
	s := NewSecret([]byte("hunter2"))
	l := &Login{User: "alice", Secret: s}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{s, l, *l, []any{l}} {
			if got := fmt.Sprintf(format, v); strings.Contains(got, "hunter2") || strings.Contains(got, "68756e74") || strings.Contains(got, "104 117") {
				t.Errorf("%s prints %s", format, got)
			}
		}
	}
	if got, err := json.Marshal(l); err != nil || strings.Contains(string(got), "hunter2") {
		t.Errorf("JSON: %s, %v", got, err)
	}
	s.Clear()
	if s.Reveal() != nil {
		t.Error("still there after Clear")
	}
}

// Whatever the client sends, and in whatever pieces: lines and reads together
// give its octets in order, but for lines too long.
func FuzzConn(f *testing.F) {
	f.Add([]byte("a LOGIN {3}\r\nbob {3+}\r\npw\n\r\n"), uint8(3), uint16(20))
	f.Fuzz(func(t *testing.T, sent []byte, step uint8, limit uint16) {
		if len(sent) > 4<<10 {
			return
		}
		var pieces []string
		for size := int(step%64) + 1; len(sent) > 0; {
			n := min(size, len(sent))
			pieces = append(pieces, string(sent[:n]))
			sent = sent[n:]
		}
		all := []byte(strings.Join(pieces, ""))
		c := feed(t, pieces...)
		most := int(limit)%2000 + 1
		for {
			line, err := c.ReadLine(most)
			if errors.Is(err, ErrLineTooLong) {
				i := bytes.IndexByte(all, '\n')
				if i < most {
					t.Fatalf("%q is too long for %d", all[:i+1], most)
				}
				all = all[i+1:]
				continue
			}
			if err != nil {
				break
			}
			if !bytes.HasPrefix(all, line) || len(line) == 0 {
				t.Fatalf("line %q, of %q", line, all)
			}
			all = all[len(line):]
			if len(line)%2 == 0 {
				p := make([]byte, 7)
				n, _ := c.Read(p)
				if !bytes.HasPrefix(all, p[:n]) {
					t.Fatalf("read %q, of %q", p[:n], all)
				}
				all = all[n:]
			}
		}
		if bytes.IndexByte(all, '\n') >= 0 && len(all) < maxSkip {
			t.Fatalf("left over: %q", all)
		}
	})
}

func TestWhatWaitsForTheEndOfAMessageIsCalledOnce(t *testing.T) {
	a, _ := net.Pipe()
	c := NewConn(a, Client{}, nil, 0)
	calls := 0
	f := func() { calls++ }
	c.SetBusy(true)
	c.WhenIdle(f)
	if calls != 0 {
		t.Error("called within the message")
	}
	c.SetBusy(false)
	c.SetBusy(true)
	c.SetBusy(false)
	if calls != 1 {
		t.Errorf("called %d times after the message, want once", calls)
	}
	c.WhenIdle(f)
	if calls != 2 {
		t.Error("not called while no message is under way")
	}
}
