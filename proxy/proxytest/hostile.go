package proxytest

import (
	"bytes"
	"math/rand/v2"
	"strings"
)

// A Message is a mail with a name for test output.
type Message struct {
	Name string
	Raw  []byte
}

const (
	longLine   = 1 << 20
	attachment = 30 << 20
)

// HostileMessages returns messages that mail software handles wrongly: always the
// same, with different names. Line ends are CRLF unless the name says otherwise.
// A server may store them unchanged; what a client must get is defined by the
// reference: Dovecot returns every LF as CRLF and, in IMAP, NUL as 0x80.
func HostileMessages() []Message {
	mail := func(name, body string) Message {
		return Message{name, []byte("From: a@example.org\r\nSubject: " + name + "\r\n\r\n" + body)}
	}
	raw := func(name, all string) Message { return Message{name, []byte(all)} }
	return []Message{
		raw("dot as the first byte", ".Subject: dot\r\n\r\nbody\r\n"),
		raw("lone dot as the first line", ".\r\nSubject: dot\r\n\r\nbody\r\n"),
		raw("nothing but a dot", "."),
		raw("nothing but a dot line", ".\r\n"),
		mail("lines beginning with dots", ".one\r\n..two\r\n...three\r\n.\r .cr\r\n"),
		mail("lone dot line", "before\r\n.\r\nafter\r\n"),
		mail("lone dot line at the end", "before\r\n.\r\n"),
		mail("dot at the end without newline", "before\r\n."),
		mail("no final newline", "the end"),
		mail("bare LF", "one\ntwo\r\nthree\n"),
		mail("dot after bare LF", "one\n.\ntwo\n..three\r\n"),
		raw("bare LF throughout", "Subject: bare\n\nbody\n.\n"),
		mail("lone CR", "one\rtwo\r\n\rthree\r\n"),
		mail("CR before CRLF", "one\r\r\n.\r\r\ntwo\r\n"),
		mail("CR at the end", "the end\r"),
		mail("dot between CRs", "one\r.\r\ntwo\r.\rthree\r\n"),
		mail("NUL", "a\x00b\r\n\x00\r\n"),
		raw("8-bit", "From: J\xf6rg <a@example.org>\r\nSubject: \xc3\xbcber\r\n\r\nlatin \xe4\xff utf-8 \xe2\x82\xac\r\n"),
		mail("line of 1 MB", strings.Repeat("x", longLine)+"\r\nend\r\n"),
		mail("line of 1 MB without newline", strings.Repeat(".", longLine)),
		mail("empty body", ""),
		mail("body of blank lines", "\r\n\r\n\r\n"),
		raw("header without blank line", "Subject: no blank line\r\nX-End: here\r\n"),
		raw("header without newline", "Subject: no newline"),
		raw("header of one folded line", "Subject: folded\r\n .\r\n\t.\r\n\r\n.\r\n"),
		raw("no header", "\r\nonly a body\r\n"),
		raw("no header and no blank line", "this is not a field\r\n.\r\nnor is this\r\n"),
		raw("one newline", "\r\n"),
		raw("empty", ""),
		{"attachment of 30 MB", withAttachment(attachment)},
	}
}

// withAttachment returns a MIME message with about size bytes of base64.
func withAttachment(size int) []byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	var b bytes.Buffer
	b.Grow(size + 1<<10)
	b.WriteString("From: a@example.org\r\nSubject: attachment\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/mixed; boundary=nasty\r\n\r\n--nasty\r\n\r\nSee below.\r\n--nasty\r\n" +
		"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	random := rand.New(rand.NewPCG(1, 2))
	line := []byte(strings.Repeat("x", 76) + "\r\n")
	for b.Len() < size {
		for i := 0; i < 76; i += 4 { // four characters of each number
			n := random.Uint32()
			line[i], line[i+1], line[i+2], line[i+3] = alphabet[n&63], alphabet[n>>6&63], alphabet[n>>12&63], alphabet[n>>18&63]
		}
		b.Write(line)
	}
	b.WriteString("--nasty--\r\n")
	return b.Bytes()
}
