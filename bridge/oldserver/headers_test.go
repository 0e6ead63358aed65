package oldserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func someHeaders(n int) (*Headers, []Message) {
	h, messages := new(Headers), make([]Message, n)
	for i := range messages {
		messages[i] = Message{Number: i + 1, UIDL: fmt.Sprintf("id-%d", i), Size: int64(i) + 100}
		h.Put(messages[i], Header{Known: true, Hash: uint64(i)<<32 | 1, Distinct: i%2 == 0})
	}
	return h, messages
}

func TestHeadersAreKeptByUIDL(t *testing.T) {
	h, messages := someHeaders(100)
	again, err := DecodeHeaders(h.Encode())
	if err != nil || again.Len() != 100 {
		t.Fatalf("%d headers, %v", again.Len(), err)
	}
	for i, m := range messages {
		if got, want := again.Get(m), (Header{Known: true, Hash: uint64(i)<<32 | 1, Distinct: i%2 == 0}); got != want {
			t.Errorf("Get(%v) = %v, want %v", m, got, want)
		}
	}
	if h := again.Get(Message{UIDL: "id-1", Size: 1}); h.Known {
		t.Error("a message of another size has the header")
	}
	if h := again.Get(Message{UIDL: "another", Size: 100}); h.Known {
		t.Error("another UIDL has a header")
	}
}

func TestWhatIsNoHeaderIsNotKept(t *testing.T) {
	known := Header{Known: true, Hash: 1}
	for name, put := range map[string]struct {
		uidl   string
		header Header
	}{
		"not read":         {"a", Header{}},
		"no UIDL":          {"", known},
		"not a valid UIDL": {"a b", known},
		"a long UIDL":      {strings.Repeat("a", 71), known},
	} {
		var h Headers
		if h.Put(Message{UIDL: put.uidl, Size: 1}, put.header) || h.Len() != 0 {
			t.Errorf("%s: it is kept", name)
		}
	}
}

func TestHeadersAreBounded(t *testing.T) {
	var h Headers
	for i := range maxHeaders + 10 {
		h.Put(Message{UIDL: fmt.Sprintf("%070d", i), Size: maxSize}, Header{Known: true, Hash: 1})
	}
	if n := h.Len(); n != maxHeaders {
		t.Errorf("%d headers", n)
	}
	if n := len(h.Encode()); n > 23<<20 {
		t.Errorf("%d octets", n)
	}
	if h.Put(Message{UIDL: fmt.Sprintf("%070d", 1), Size: 1}, Header{Known: true}); !h.Get(Message{UIDL: fmt.Sprintf("%070d", 1), Size: 1}).Known {
		t.Error("a header that is kept cannot be replaced")
	}
}

// Criterion: A header that was read under a UIDL of the old server proves nothing once that UIDL may be another message's.
func TestHeadersOfOtherMessagesAreRemoved(t *testing.T) {
	for name, test := range map[string]struct {
		change func([]Message) []Message
		want   int
	}{
		"as it was":      {func(m []Message) []Message { return m }, 10},
		"messages came":  {func(m []Message) []Message { return append(m, Message{UIDL: "new", Size: 1}) }, 10},
		"messages went":  {func(m []Message) []Message { return m[:3] }, 10},
		"not mounted":    {func([]Message) []Message { return nil }, 10},
		"one other size": {func(m []Message) []Message { m[4].Size++; return m }, 0},
		"a shared UIDL":  {func(m []Message) []Message { return append(m, m[2]) }, 9},
		"UIDLs by place": {func(m []Message) []Message { // the first message went, and each has the UIDL of the one before
			for i := range m[:9] {
				m[i].Size = m[i+1].Size
			}
			return m[:9]
		}, 0},
	} {
		h, messages := someHeaders(10)
		h.Confirm(test.change(slices.Clone(messages)))
		if n := h.Len(); n != test.want {
			t.Errorf("%s: %d headers, want %d", name, n, test.want)
		}
	}
}

// Mail that comes and goes does not fill the store.
func TestHeadersOfOldMailGo(t *testing.T) {
	h, messages := someHeaders(5000)
	if h.Confirm(messages[:2500]); h.Len() != 5000 {
		t.Errorf("%d headers", h.Len())
	}
	if h.Confirm(messages[4900:]); h.Len() != 100 {
		t.Errorf("%d headers", h.Len())
	}
}

func FuzzDecodeHeaders(f *testing.F) {
	h, _ := someHeaders(3)
	for _, h := range []*Headers{h, new(Headers)} {
		b := h.Encode()
		f.Add(b[:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeaders(seal(b))
		if err != nil {
			return
		}
		if again, err := DecodeHeaders(h.Encode()); err != nil || again.Len() != h.Len() {
			t.Errorf("%d headers, %d again, %v", h.Len(), again.Len(), err)
		}
	})
}

func TestDamagedHeadersAreNotRead(t *testing.T) {
	h, _ := someHeaders(3)
	for i, b := 0, h.Encode(); i < len(b); i++ {
		if _, err := DecodeHeaders(b[:i]); err == nil {
			t.Errorf("%d octets of %d are read", i, len(b))
		}
		broken := slices.Clone(b)
		broken[i] ^= 0x20
		if _, err := DecodeHeaders(broken); err == nil {
			t.Errorf("octet %d is wrong, and is read", i)
		}
	}
}
