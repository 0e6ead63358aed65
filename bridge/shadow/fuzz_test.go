package shadow

import (
	"reflect"
	"strings"
	"testing"
)

// FuzzWatcher: a response says the same whatever pieces it comes in, and is bounded.
func FuzzWatcher(f *testing.F) {
	for _, text := range []string{
		"1 a\r\n2 b\r\n.\r\n", "1 10\r\n2 20 more\r\n.\r\n", "9 x\r\n.\r\n", "1\r\n", "..1 a\r\n", "1 a\n1 b\n.\n",
		"Message-ID: <1@example.org>\r\n.. dot\r\n\r\n..\r\n.x\r\n.\r\nbehind", ".\r\n", "a: b\r\n.\n", "1 a" + strings.Repeat("x", maxLine) + "\r\n.\r\n",
	} {
		f.Add(text, 1)
		f.Add(text, 5)
	}
	f.Fuzz(func(t *testing.T, text string, at int) {
		watch := func(pieces ...string) *Watcher {
			w := new(Watcher)
			w.begin(3)
			w.whole = map[int]bool{2: true}
			for _, command := range []struct {
				keyword string
				number  int
			}{{"LIST", 0}, {"UIDL", 0}, {"TOP", 1}, {"TOP", 2}} {
				out := w.Response(command.keyword, command.number, true)
				for _, piece := range pieces {
					if n, err := out.Write([]byte(piece)); n != len(piece) || err != nil {
						t.Fatalf("Write = %d, %v", n, err)
					}
				}
			}
			return w
		}
		at = min(max(at, 0), len(text))
		whole, parts := watch(text), watch(text[:at], text[at:])
		for _, same := range [][2]any{
			{whole.sizes, parts.sizes}, {whole.uidls, parts.uidls}, {whole.headers, parts.headers}, {whole.sums, parts.sums}, {whole.err, parts.err},
		} {
			if !reflect.DeepEqual(same[0], same[1]) {
				t.Errorf("%q in one piece: %v; cut at %d: %v", text, same[0], at, same[1])
			}
		}
		for _, id := range whole.uidls.values {
			if len(id) > maxUIDL {
				t.Errorf("a UIDL of %d octets", len(id))
			}
		}
	})
}
