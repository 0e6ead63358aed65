package backend

import (
	"bytes"
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"postern/proxy"
	"postern/proxy/wire"
)

// The limits of alerts.
const (
	maxAlert  = 200 // octets that a user is shown
	maxAlerts = 8   // texts that are kept
	redacted  = "..."
)

// recordAlert keeps the text of a response that the user must be shown: RFC 3501
// section 7.1.
func (d *imap) recordAlert(r wire.Response) {
	if r.Status() && r.CodeName() == "ALERT" && len(d.alerts) < maxAlerts {
		d.alerts = append(d.alerts, r.Text)
	}
}

// alertFor returns what l's user must be shown, as one line of printable ASCII of
// at most maxAlert octets, or "". Names of the account and of the server are
// redacted. A text that contains the password is left out.
func (d *imap) alertFor(l *proxy.Login, s *Server) string {
	if len(d.alerts) == 0 {
		return ""
	}
	hidden := s.names(d.conn)
	for _, name := range []string{l.User, l.Account} {
		local, _, _ := strings.Cut(name, "@")
		hidden = append(hidden, name, local, strings.ReplaceAll(name, "@", "%40"), strings.ReplaceAll(name, "@", "=40"))
	}
	var all string
	for _, text := range d.alerts {
		if containsSecret(text, l) {
			continue
		}
		text = redact(printable(text), hidden)
		switch {
		case text == "" || text == all:
		case all == "":
			all = text[:min(len(text), maxAlert)]
		case len(all)+len("; ")+len(text) <= maxAlert:
			all += "; " + text
		}
	}
	return all
}

// withAlert adds the alert to a refusal. Who has not proved to be the user gets
// none.
func (d *imap) withAlert(err error, l *proxy.Login, s *Server) error {
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason == proxy.Wrong || r.Reason == proxy.Malformed {
		return err
	}
	r.Alert = d.alertFor(l, s)
	return err
}

// names returns the names and addresses of the server at the other end of conn.
func (s *Server) names(conn net.Conn) []string {
	var names []string
	for _, address := range []string{s.Address, conn.RemoteAddr().String()} {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		names = append(names, host)
	}
	if s.Config != nil {
		names = append(names, s.Config.ServerName)
	}
	return names
}

// printable returns text as one line of printable ASCII with single spaces.
func printable(text string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7F:
			return ' '
		case r > '~':
			return '?'
		}
		return r
	}, text)), " ")
}

// containsSecret reports whether text contains l's secret: in upper or lower case, with
// other white space or control characters, as an IMAP quoted string, with octets as %40
// or =40, as a form of HTML has it, or in base64.
func containsSecret(text string, l *proxy.Login) bool {
	secret := l.Secret.Reveal()
	if len(secret) == 0 {
		return false
	}
	plain := squash(secret)
	defer clear(plain)
	if len(plain) == 0 {
		return true // of spaces alone: it cannot be looked for
	}
	octets := []byte(text)
	for _, form := range [][]byte{octets, bytes.ReplaceAll(octets, []byte("+"), nil)} { // + is a space in forms of HTML
		for _, form := range [][]byte{form, unquote(form), decode(form), decode(unquote(form)), unquote(decode(form))} {
			if bytes.Contains(squash(form), plain) {
				return true
			}
		}
	}
	for _, encoded := range [][]byte{wire.AppendSASL(nil, secret), wire.AppendPlain(nil, l.Account, secret)} {
		found := bytes.Contains(octets, bytes.TrimRight(encoded, "="))
		clear(encoded)
		if found {
			return true
		}
	}
	return false
}

// withoutSecret returns a response code that no table of verdicts has. The error of the
// verdict shows the code, in which a server may repeat the credentials.
func withoutSecret(code string, l *proxy.Login) string {
	if code != "" && containsSecret(code, l) {
		return redacted
	}
	return code
}

// squash returns b as printable shows it, in lower case and without spaces.
func squash(b []byte) []byte {
	squashed := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch b = b[n:]; {
		case r <= ' ' || r == 0x7F:
		case r > '~':
			squashed = append(squashed, '?')
		case 'A' <= r && r <= 'Z':
			squashed = append(squashed, byte(r)|0x20)
		default:
			squashed = append(squashed, byte(r))
		}
	}
	return squashed
}

// unquote takes the backslashes of an IMAP quoted string away: RFC 9051 section 9.
func unquote(b []byte) []byte {
	unquoted := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) && (b[i+1] == '"' || b[i+1] == '\\') {
			i++
		}
		unquoted = append(unquoted, b[i])
	}
	return unquoted
}

// decode replaces %40 (RFC 3986 section 2.1) and =40 (RFC 2045 section 6.7) by the octet.
func decode(b []byte) []byte {
	decoded := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if (b[i] == '%' || b[i] == '=') && i+2 < len(b) {
			if octet, err := strconv.ParseUint(string(b[i+1:i+3]), 16, 8); err == nil {
				decoded = append(decoded, byte(octet))
				i += 2
				continue
			}
		}
		decoded = append(decoded, b[i])
	}
	return decoded
}

// redact replaces each of words, where it is a word of text, and each IP address.
func redact(text string, words []string) string {
	words = slices.Clone(words)
	slices.SortFunc(words, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, word := range words {
		text = redactWord(text, printable(word))
	}
	fields := strings.Fields(text)
	for i, field := range fields {
		bare := strings.Trim(field, `()[]<>{},;"'.!?`)
		if isAddress(bare) {
			fields[i] = strings.Replace(field, bare, redacted, 1)
		}
	}
	return strings.Join(fields, " ")
}

// isAddress reports whether word is an IP address, with or without a port, also
// when the bracket at its beginning is missing.
func isAddress(word string) bool {
	_, err := netip.ParseAddr(word)
	for _, s := range []string{word, "[" + word} {
		if err != nil {
			_, err = netip.ParseAddrPort(s)
		}
	}
	return err == nil
}

// redactWord replaces word in text, in upper or lower case, where it is not part
// of a longer word.
func redactWord(text, word string) string {
	if word == "" {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		end := i + len(word)
		if end <= len(text) && strings.EqualFold(text[i:end], word) && (i == 0 || !wordOctet(text[i-1])) && (end == len(text) || !wordOctet(text[end])) {
			b.WriteString(redacted)
			i = end
			continue
		}
		b.WriteByte(text[i])
		i++
	}
	return b.String()
}

func wordOctet(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
