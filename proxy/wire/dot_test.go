package wire

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestDotWriter(t *testing.T) {
	for _, test := range []struct {
		body, want string
		octets     int64
	}{
		{"", "\r\n.\r\n", 2},
		{"a\r\n", "a\r\n.\r\n", 3},
		{"a", "a\r\n.\r\n", 3},
		{"a\n", "a\n\r\n.\r\n", 4},
		{"a\r", "a\r\r\n.\r\n", 4},
		{"\n", "\n\r\n.\r\n", 3},
		{"\r\n", "\r\n.\r\n", 2},
		{".", "..\r\n.\r\n", 3},
		{".\r\n", "..\r\n.\r\n", 3},
		{"..a\r\n", "...a\r\n.\r\n", 5},
		{"a\r\n.\r\nb\r\n", "a\r\n..\r\nb\r\n.\r\n", 9},
		{"a\n.\nb\n", "a\n..\nb\n\r\n.\r\n", 8},
		{"a\r.b\r\n", "a\r.b\r\n.\r\n", 6},
		{"a.\r\n.b.\r\n", "a.\r\n..b.\r\n.\r\n", 9},
		{"\x00\xff\r\n", "\x00\xff\r\n.\r\n", 4},
	} {
		if got, octets := writeBody(t, test.body, len(test.body)); got != test.want || octets != test.octets {
			t.Errorf("%q becomes %q, %d octets, want %q, %d", test.body, got, octets, test.want, test.octets)
		}
	}
}

// writeBody writes body in parts of the given size.
func writeBody(t *testing.T, body string, piece int) (string, int64) {
	t.Helper()
	var b bytes.Buffer
	d := NewDotWriter(&b)
	for rest := []byte(body); len(rest) > 0; {
		n := min(max(piece, 1), len(rest))
		if written, err := d.Write(rest[:n]); written != n || err != nil {
			t.Fatalf("Write(%q) = %d, %v", rest[:n], written, err)
		}
		rest = rest[n:]
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), d.Octets()
}

// readBody reads a response as a client does that ends lines at every LF.
func readBody(t *testing.T, reply string) string {
	t.Helper()
	var body strings.Builder
	for {
		line, rest, found := strings.Cut(reply, "\n")
		if !found {
			t.Fatalf("no end of the reply, but %q", line)
		}
		line += "\n"
		if line == ".\r\n" {
			if rest != "" {
				t.Fatalf("after the end of the reply: %q", rest)
			}
			return body.String()
		}
		body.WriteString(strings.TrimPrefix(line, "."))
		reply = rest
	}
}

func FuzzDotWriter(f *testing.F) {
	f.Add("", 1)
	f.Add(".\r\n.\n..\r.", 2)
	f.Add("Subject: a\r\n\r\n.\r\n", 3)
	f.Add("a\r\n\n.\n", 5)
	f.Fuzz(func(t *testing.T, body string, piece int) {
		got, octets := writeBody(t, body, piece)
		if !strings.HasSuffix("\n"+got, "\r\n.\r\n") {
			t.Errorf("%q ends as %q", body, got)
		}
		want := body
		if !strings.HasSuffix(body, "\r\n") {
			want += "\r\n"
		}
		if back := readBody(t, got); back != want {
			t.Errorf("%q comes back as %q", body, back)
		}
		if octets != int64(len(want)) {
			t.Errorf("Octets() = %d, want %d", octets, len(want))
		}
		if whole, _ := writeBody(t, body, len(body)); whole != got {
			t.Errorf("in pieces of %d %q, at once %q", piece, got, whole)
		}
	})
}

func BenchmarkDotWriter(b *testing.B) {
	line := strings.Repeat("x", 76) + "\r\n"
	body := []byte(strings.Repeat(line, 32<<10/len(line)))
	d := NewDotWriter(io.Discard)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := d.Write(body); err != nil {
			b.Fatal(err)
		}
	}
}
