// Package proxytest has what tests of several packages share: transcripts, a
// connection with faults, certificates, hostile messages and launchers of real
// mail servers. It imports testing and is never part of the binary.
package proxytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// stepTimeout bounds each step of a transcript.
	stepTimeout = 5 * time.Second
	// maxLine bounds a line that a transcript expects.
	maxLine = 4 << 20
	// eof stands for the end of a direction.
	eof = "<EOF>"
)

// Transcript plays the client's part of a dialogue on conn and fails the test
// at the first step that goes otherwise. A script has one step a line; leading
// tabs and empty lines are ignored:
//
//	S: pattern   the server sends one line, up to CRLF, that matches
//	S: <EOF>     the server ends its direction (a reset is an error)
//	S- bytes     the server sends exactly these bytes
//	C: line      the client sends this line, as it stands, and CRLF
//	C: <EOF>     the client ends its direction
//	C- bytes     the client sends these bytes and nothing more
//
// In a pattern * matches any bytes, none included. In patterns and bytes \r,
// \n, \t and \xHH are what they are in Go, and a backslash before any other
// byte makes it literal: \* is an asterisk, \\ a backslash. A trailing space is
// best written \x20.
//
// Each step may take 5 s. Nothing is read beyond the last step, so that
// transcripts and other readers can take turns on one connection. Transcript
// must be called from the goroutine of the test.
func Transcript(t testing.TB, conn net.Conn, script string) {
	t.Helper()
	if err := play(conn, script, "S"); err != nil {
		t.Fatal(err)
	}
}

// ServeTranscript plays the server's part of a dialogue on conn in a goroutine:
// it sends the steps of S and expects those of C, in the notation of
// [Transcript]. A step that goes otherwise is an error of the test and closes
// conn. The end of the test waits for the end of the script.
func ServeTranscript(t testing.TB, conn net.Conn, script string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := play(conn, script, "C"); err != nil {
			t.Error(err)
			_ = conn.Close() // ends the other side's wait
		}
	}()
	t.Cleanup(func() { <-done })
}

// play runs a script on conn. The steps of peer are expected, the others sent.
func play(conn net.Conn, script, peer string) error {
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	for i, line := range strings.Split(script, "\n") {
		line = strings.TrimLeft(line, "\t")
		if strings.TrimSpace(line) == "" {
			continue
		}
		if err := conn.SetDeadline(time.Now().Add(stepTimeout)); err != nil {
			return fmt.Errorf("transcript line %d: %s: %w", i+1, line, err)
		}
		if err := step(conn, line, peer); err != nil {
			return fmt.Errorf("transcript line %d: %s: %w", i+1, line, err)
		}
	}
	return nil
}

func step(conn net.Conn, line, peer string) error {
	who, kind, text, err := parse(line)
	switch {
	case err != nil:
		return err
	case who == peer && kind == '-':
		return expectBytes(conn, text)
	case who == peer && text == eof:
		return expectEOF(conn)
	case who == peer:
		return expectLine(conn, text)
	case kind == '-':
		b, err := unescape(text)
		if err != nil {
			return err
		}
		return send(conn, b)
	case text == eof:
		return closeWrite(conn)
	default:
		return send(conn, []byte(text+"\r\n"))
	}
}

// parse splits "C: text" into C, the colon and text.
func parse(line string) (who string, kind byte, text string, err error) {
	if len(line) < 2 || line[0] != 'S' && line[0] != 'C' || line[1] != ':' && line[1] != '-' || len(line) > 2 && line[2] != ' ' {
		return "", 0, "", errors.New("not a step: want S: S- C: or C-, a space and the text")
	}
	if len(line) > 3 {
		text = line[3:]
	}
	return line[:1], line[1], text, nil
}

func send(conn net.Conn, b []byte) error {
	_, err := conn.Write(b)
	return err
}

func closeWrite(conn net.Conn) error {
	c, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("a %T cannot end its direction alone", conn)
	}
	return c.CloseWrite()
}

func expectEOF(conn net.Conn) error {
	got, err := readLine(conn)
	if len(got) > 0 {
		return fmt.Errorf("got %q", got)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("got no end but: %w", err)
	}
	return nil
}

func expectBytes(conn net.Conn, text string) error {
	want, err := unescape(text)
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	n, err := io.ReadFull(conn, got)
	if err != nil {
		return fmt.Errorf("got %q, then: %w", got[:n], err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

func expectLine(conn net.Conn, pattern string) error {
	parts, err := compile(pattern)
	if err != nil {
		return err
	}
	got, err := readLine(conn)
	if err != nil {
		return fmt.Errorf("got %q, then: %w", got, err)
	}
	if line := bytes.TrimSuffix(got, []byte("\r\n")); !match(parts, line) {
		return fmt.Errorf("got %q", line)
	}
	return nil
}

// readLine reads up to and with CRLF. It takes one byte at a time: what follows
// the line stays in conn.
func readLine(conn net.Conn) ([]byte, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < maxLine {
		if n, err := conn.Read(b); n == 0 && err != nil {
			return line, err
		} else if n == 0 {
			continue
		}
		line = append(line, b[0])
		if bytes.HasSuffix(line, []byte("\r\n")) {
			return line, nil
		}
	}
	return line[:80], fmt.Errorf("no line end within %d bytes", maxLine)
}

// compile splits a pattern at its wildcards; the parts are literal bytes.
func compile(pattern string) ([][]byte, error) {
	var parts [][]byte
	start := 0
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++ // the next byte is no wildcard
		case '*':
			part, err := unescape(pattern[start:i])
			if err != nil {
				return nil, err
			}
			parts = append(parts, part)
			start = i + 1
		}
	}
	part, err := unescape(pattern[start:])
	return append(parts, part), err
}

// match reports whether line consists of the parts in order with any bytes
// between them.
func match(parts [][]byte, line []byte) bool {
	first, last := parts[0], parts[len(parts)-1]
	if len(parts) == 1 {
		return bytes.Equal(line, first)
	}
	if len(line) < len(first)+len(last) || !bytes.HasPrefix(line, first) || !bytes.HasSuffix(line, last) {
		return false
	}
	line = line[len(first) : len(line)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := bytes.Index(line, part)
		if i < 0 {
			return false
		}
		line = line[i+len(part):]
	}
	return true
}

func unescape(s string) ([]byte, error) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i++; i == len(s) {
			return nil, errors.New("a backslash at the end")
		}
		switch s[i] {
		case 'r':
			b = append(b, '\r')
		case 'n':
			b = append(b, '\n')
		case 't':
			b = append(b, '\t')
		case 'x':
			v, err := strconv.ParseUint(s[i+1:min(i+3, len(s))], 16, 8)
			if err != nil || i+3 > len(s) {
				return nil, errors.New(`\x without two hexadecimal digits`)
			}
			b = append(b, byte(v))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return b, nil
}
