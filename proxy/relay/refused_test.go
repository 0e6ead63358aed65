package relay

import (
	"io"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// Criterion: with bare_newlines: reject a client whose last dot ends in LF alone
// is answered at once, and not after five minutes.
func TestSubmissionThatRejectsAnswersALastDotWithLF(t *testing.T) {
	for _, message := range []string{
		"Subject: x\n\ntext\n.\n", ".\n", "text\r\n.\n", "text\n.\r\n", "a\n.\nb\n.\n", strings.Repeat("x\n", 100_000) + ".\n",
	} {
		for _, size := range []int{1, 2, 3, len(message)} {
			if len(message) > 100 && size < 100 {
				continue
			}
			begun := time.Now()
			rejectReply(t, "DATA\r\n", message, size)
			if took := time.Since(begun); took > 4*time.Second {
				t.Errorf("%.40q in pieces of %d: answered after %v", message, size, took)
			}
		}
	}
}

// Criterion: a NUL in a message is refused, and the server sees no end of the
// message; with bare_newlines: pass it comes through.
func TestSubmissionRefusesNUL(t *testing.T) {
	const before = "MAIL FROM:<a>\r\nRCPT TO:<b>\r\n"
	for _, how := range []Newlines{Normalize, Reject} {
		for _, message := range []string{
			"DATA\r\na\x00b\r\n.\r\nNOOP\r\n", "DATA\r\na\r\n\x00.\r\n.\r\n", "DATA\r\na\r\n.\x00\r\n.\r\n", "DATA\r\n.\r\x00\n\r\n.\r\n",
			"BDAT 4 LAST\r\na\x00\r\n", "BDAT 3\r\na\x00bBDAT 0 LAST\r\n",
		} {
			s := startSubmissionWith(t, how)
			got := make(chan string, 1)
			go func() { got <- acceptMessages(s.server) }()
			command, text, _ := strings.Cut(message, "\r\n")
			expected := "S: 250 ok\nS: 250 ok\n"
			if command == "DATA" {
				expected += "S: 354 go on\n"
				_, _ = io.WriteString(s.client, before+command+"\r\n")
				proxytest.Transcript(t, s.client, expected)
				_, _ = io.WriteString(s.client, text)
			} else {
				_, _ = io.WriteString(s.client, before+message)
				proxytest.Transcript(t, s.client, expected)
			}
			proxytest.Transcript(t, s.client, "S: 554 5.6.0 NUL *\nS: <EOF>")
			s.waitEnd(t, errNUL, 0)
			if server := <-got; strings.Contains(server, "\r\n.\r\n") || strings.Contains(server, "LAST") || strings.Contains(server, "NOOP") {
				t.Errorf("%v: of %q the server got %q", how, message, server)
			}
		}
	}
	// What follows the message is no part of it.
	dialogue(t, `
		C: DATA
		S: 354 go on
		C- a\r\n.\r\nNOOP \x00\r\n
		S: 250 queued
		S: 500 *
		C: QUIT
		S: 221 bye
		S: <EOF>`, `
		C: DATA
		S: 354 go on
		C: a
		C: .
		S: 250 queued
		C: QUIT
		S: 221 bye
		S: <EOF>`, nil, 1)
	s := startSubmissionWith(t, Pass)
	proxytest.ServeTranscript(t, s.server, "C: DATA\nS: 354 go on\nC- a\\x00\\r\\n\\x00.\\r\\n.\\r\\n\nS: 250 queued\nC: QUIT\nS: 221 bye\nS: <EOF>")
	proxytest.Transcript(t, s.client, "C: DATA\nS: 354 go on\nC- a\\x00\\r\\n\\x00.\\r\\n.\\r\\n\nS: 250 queued\nC: QUIT\nS: 221 bye\nS: <EOF>")
	s.waitEnd(t, nil, 1)
}

// Criterion: a command that goes to a server is no longer than RFC 5321 and the
// extensions announced make it: a server that cuts there reads no second one.
func TestSubmissionBoundsCommands(t *testing.T) {
	for _, test := range []struct {
		command string
		passes  int // octets with CRLF
	}{
		{"NOOP ", 512}, {"VRFY ", 512}, {"HELP ", 512}, {"RCPT TO:<b> ", 512},
		{"MAIL FROM:<a> ", 512 + 500 + 26 + 17}, // AUTH, SIZE and 8BITMIME are announced
	} {
		line := test.command + strings.Repeat("x", test.passes-len(test.command)-2)
		dialogue(t, `
			C: `+line+`
			S: 250 ok
			C: `+line+`y
			S: 500 5.5.2 Line too long
			C: QUIT
			S: 221 bye
			S: <EOF>`, `
			C: `+line+`
			S: 250 ok
			C: QUIT
			S: 221 bye
			S: <EOF>`, nil, 0)
	}
}
