package main

import (
	"io"
	"os"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// A display is a terminal that shows what commands print, and obeys nothing of it. Servers,
// certificates and clients choose parts of that text: with control characters in it they
// would move the cursor, change what stands there already, or type into the terminal.
type display struct{ terminal *os.File }

// onDisplay returns f, or the display of f if f is a terminal.
func onDisplay(f *os.File) io.Writer {
	if term.IsTerminal(int(f.Fd())) {
		return display{f}
	}
	return f
}

// Write implements io.Writer.
func (d display) Write(p []byte) (int, error) {
	if _, err := d.terminal.Write(harmless(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// harmless returns text with a question mark in place of each character that a terminal
// obeys: controls but for tab and line end, and those that change the direction of text.
func harmless(text []byte) []byte {
	shown := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == '\n' || r == '\t' || unicode.IsGraphic(r) && (r != utf8.RuneError || n > 1):
			shown = append(shown, text[:n]...)
		case !utf8.FullRune(text): // the next Write has the rest
			shown = append(shown, text...)
			n = len(text)
		default:
			shown = append(shown, '?')
		}
		text = text[n:]
	}
	return shown
}

// isDisplay reports whether what is written to out is shown on a terminal.
func isDisplay(out io.Writer) bool {
	_, ok := out.(display)
	return ok
}

// clearLine clears the line of a display that the cursor is in.
func clearLine(out io.Writer) {
	if d, ok := out.(display); ok {
		_, _ = io.WriteString(d.terminal, "\r\x1b[K")
	}
}
