package relay

import (
	"regexp"
	"strings"
	"testing"
)

// filter sends a message through b in parts of size octets. It returns the
// output, the octets that follow the end of the message, and whether there was an
// end.
func filter(b *body, in string, size int) (out, rest string, end bool) {
	var all []byte
	dst := make([]byte, 16)
	for in != "" && !end {
		piece := in[:min(size, len(in))]
		var sent []byte
		var n int
		sent, n, end = b.next(dst, []byte(piece))
		all, in = append(all, sent...), in[n:]
	}
	return string(all), in, end
}

// The vectors with which servers were made to see two messages in one.
var smuggling = []string{
	"\n.\n", "\n.\r", "\r.\n", "\r.\r", "\n.\r\n", "\r.\r\n", "\r\n.\n", "\r\n.\r", "\r\n.\r\r\n", "\r\r\n.\r\r\n",
	"\n\n.\r\n", "\r\n\x00.\r\n", "\r\n.\x00\r\n", "\n..\n", "\r\r.\r\r", "\r\n.\r.\r\n", "\r\n.\n.\r\r",
}

func TestBodyNormalizesLineEnds(t *testing.T) {
	for in, want := range map[string]string{
		".\r\n":                                        ".\r\n",
		"a\r\n.\r\n":                                   "a\r\n.\r\n",
		"a\r\n..\r\n..b\r\n.\r\n":                      "a\r\n..\r\n..b\r\n.\r\n",
		"a\nb\rc\r\n.\r\n":                             "a\r\nb\r\nc\r\n.\r\n",
		"\n\r\r\n\n.\r\n.\r\n":                         "\r\n\r\n\r\n\r\n..\r\n.\r\n",
		"a\r\n.\nMAIL\r\n.\r\n":                        "a\r\n..\r\nMAIL\r\n.\r\n",
		"a\n.\nMAIL\r\n.\r\n":                          "a\r\n..\r\nMAIL\r\n.\r\n",
		"a\r.\rMAIL\r\n.\r\n":                          "a\r\n..\r\nMAIL\r\n.\r\n",
		"a\n.b\r\n.c\r\n.\r\n":                         "a\r\n.b\r\n.c\r\n.\r\n",
		"a\r\n.\r\r\n.\r\n":                            "a\r\n..\r\n\r\n.\r\n",
		"a\r\n.\r.\r\n.\r\n":                           "a\r\n..\r\n..\r\n.\r\n",
		"\x00\xff\r\n.\r\n":                            "\x00\xff\r\n.\r\n",
		"no line end until\r\n.\r\n":                   "no line end until\r\n.\r\n",
		"a.\r\n.\r\n":                                  "a.\r\n.\r\n",
		"1234\r\na\r\nb\r\n1234\r\n.\r\n":              "1234\r\na\r\nb\r\n1234\r\n.\r\n", // two lines as long as one
		"1234\r\n.\n\n\r\n1234\r\n.\r\n":               "1234\r\n..\r\n\r\n\r\n1234\r\n.\r\n",
		"1234\r\na\nb\n\r\n1234\r\n.\r\n":              "1234\r\na\r\nb\r\n\r\n1234\r\n.\r\n",
		"1234\r\nab\rc\r\n1234\r\n.\r\n":               "1234\r\nab\r\nc\r\n1234\r\n.\r\n",
		"12345678\r\nab\r\n.\r\nc\r\nmore":             "12345678\r\nab\r\n.\r\n", // an end within the length of a line
		"a\r\n.\r\n.\r\nQUIT\r\n":                      "a\r\n.\r\n",              // what follows are commands
		strings.Repeat("x", 5000) + "\n.\r\n\r\n.\r\n": strings.Repeat("x", 5000) + "\r\n..\r\n\r\n.\r\n",
	} {
		for size := 1; size <= len(in); size++ {
			got, rest, end := filter(&body{dots: true}, in, size)
			if got != want || !end {
				t.Fatalf("%.60q in pieces of %d became %.60q, %v, want %.60q", in, size, got, end, want)
			}
			if !strings.HasSuffix(in, ".\r\n"+rest) {
				t.Fatalf("%.60q in pieces of %d left %q", in, size, rest)
			}
			if size > 100 {
				break
			}
		}
	}
}

func TestBodyOfAChunkHasNoEnd(t *testing.T) {
	const in = ".\r\n.\n\r\n.\r\na\rb\r"
	for size := 1; size <= len(in); size++ {
		b := &body{}
		got, rest, end := filter(b, in, size)
		got += string(b.finish())
		if want := ".\r\n.\r\n\r\n.\r\na\r\nb\r\n"; got != want || rest != "" || end {
			t.Errorf("in pieces of %d: %q, left %q, %v, want %q", size, got, rest, end, want)
		}
		if more := b.finish(); more != nil {
			t.Errorf("finish again = %q", more)
		}
	}
}

// Criterion: no body, however it is split, makes two messages at a server, be
// it one that takes any line end for one.
func TestBodyNeverEndsEarlyForALaxServer(t *testing.T) {
	for _, vector := range smuggling {
		in := "first" + vector + "MAIL FROM:<evil@example.org>\r\n.\r\n"
		for size := 1; size <= len(in); size++ {
			checkBody(t, in, size)
		}
	}
}

var anyLineEnd = regexp.MustCompile(`\r\n|\r|\n`)

// normalized returns what a message and its end have to become.
func normalized(in string) (out, rest string) {
	text, rest, _ := strings.Cut("\r\n"+in, "\r\n.\r\n")
	if text == "" {
		return ".\r\n", rest
	}
	lines := anyLineEnd.Split(text[2:], -1)
	for i, line := range lines {
		if line == "." {
			lines[i] = ".."
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n.\r\n", rest
}

// checkBody fails unless every kind of server finds exactly one end of the
// message, where it belongs, and all other octets are unchanged.
func checkBody(t *testing.T, in string, size int) {
	t.Helper()
	out, rest, end := filter(&body{dots: true}, in, size)
	wantOut, wantRest := normalized(in)
	if out != wantOut || rest != wantRest || !end {
		t.Fatalf("%q in pieces of %d became %q, left %q, %v, want %q, %q", in, size, out, rest, end, wantOut, wantRest)
	}
	if strings.ContainsAny(strings.ReplaceAll(out, "\r\n", ""), "\r\n") {
		t.Fatalf("%q became %q: a bare line end", in, out)
	}
	if ends := strings.Count("\r\n"+strings.ReplaceAll(out, "\r\n", "\r\n\r\n"), "\r\n.\r\n"); ends != 1 {
		t.Fatalf("%q became %q: %d ends", in, out, ends)
	}
}

func FuzzBody(f *testing.F) {
	for _, vector := range smuggling {
		f.Add("a"+vector+"b", uint8(3))
	}
	for _, vector := range smuggling { // in place of a line, so that the next line ends where it is looked for
		f.Add("1234567890\r\n"+("abcdefghij" + vector + "\r\n")[len(vector):], uint8(99))
	}
	f.Fuzz(func(t *testing.T, in string, size uint8) {
		in += "\r\n.\r\nQUIT"
		checkBody(t, in, int(size)+1)
		_, want := normalized(in)
		strict := &body{dots: true, as: Reject}
		if _, rest, end := filter(strict, in, int(size)+1); rest != want || !end || strict.bare == clean(strings.TrimSuffix(in, rest)) {
			t.Fatalf("%q in pieces of %d: left %q, %v, bare %v", in, int(size)+1, rest, end, strict.bare)
		}
		if out, rest, end := filter(&body{dots: true, as: Pass}, in, int(size)+1); out+rest != in || rest != want || !end {
			t.Fatalf("%q in pieces of %d passed as %q, left %q, %v", in, int(size)+1, out, rest, end)
		}
	})
}

func BenchmarkBody(b *testing.B) {
	for name, line := range map[string]string{
		"CRLF": strings.Repeat("x", 76) + "\r\n", "LF": strings.Repeat("x", 76) + "\n",
		"text": "A line of text,\r\nand a line that is longer,\r\n\r\nand one more.\r\n",
	} {
		b.Run(name, func(b *testing.B) {
			in := []byte(strings.Repeat(line, 16<<10/len(line)))
			dst := make([]byte, bufferSize)
			b.SetBytes(int64(len(in)))
			filter := body{dots: true}
			for b.Loop() {
				for rest := in; len(rest) > 0; {
					_, n, _ := filter.next(dst, rest)
					rest = rest[n:]
				}
			}
		})
	}
}
