package backend

import (
	"bytes"
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	mostAlert  = 200 // octets of what a user is shown
	mostAlerts = 8   // texts that are kept
	hiddenWord = "..."
)

// noteAlert keeps the text of a response that the user must be shown: RFC 3501
// section 7.1.
func (d *imap) noteAlert(r wire.Response) {
	if r.Status() && r.CodeName() == "ALERT" && len(d.alerts) < mostAlerts {
		d.alerts = append(d.alerts, r.Text)
	}
}

// alert returns in one line what l's user is to be shown, "" if there is
// nothing: printable ASCII of at most mostAlert octets. The names of l's account
// and of the server are left out of it, and what holds the password altogether.
func (d *imap) alert(l *proxy.Login, s *Server) string {
	if len(d.alerts) == 0 {
		return ""
	}
	hidden := s.ownNames(d.conn)
	for _, name := range []string{l.User, l.Account} {
		local, _, _ := strings.Cut(name, "@")
		hidden = append(hidden, name, local)
	}
	var all string
	for _, text := range d.alerts {
		if betrays(text, l) || betrays(printable(text), l) {
			continue
		}
		text = hide(printable(text), hidden)
		switch {
		case text == "" || text == all:
		case all == "":
			all = text[:min(len(text), mostAlert)]
		case len(all)+len("; ")+len(text) <= mostAlert:
			all += "; " + text
		}
	}
	return all
}

// alerted adds to a refusal what the user is to be shown. Whoever has not shown
// that he is the user is told nothing.
func (d *imap) alerted(err error, l *proxy.Login, s *Server) error {
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason == proxy.Wrong || r.Reason == proxy.Malformed {
		return err
	}
	r.Alert = d.alert(l, s)
	return err
}

// ownNames returns names and addresses of the server that conn leads to.
func (s *Server) ownNames(conn net.Conn) []string {
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

// printable returns text as one line of printable ASCII, with single spaces.
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

// betrays reports whether l's secret is in text, in upper or lower case or in
// base64.
func betrays(text string, l *proxy.Login) bool {
	secret := l.Secret.Reveal()
	if len(secret) == 0 {
		return false
	}
	octets := []byte(text)
	for i := range len(octets) - len(secret) + 1 {
		if bytes.EqualFold(octets[i:i+len(secret)], secret) {
			return true
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

// hide replaces each of words in text, where it stands alone, and each address.
func hide(text string, words []string) string {
	words = slices.Clone(words)
	slices.SortFunc(words, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, word := range words {
		text = hideWord(text, printable(word))
	}
	fields := strings.Fields(text)
	for i, field := range fields {
		bare := strings.Trim(field, `()[]<>{},;"'.!?`)
		if isAddress(bare) {
			fields[i] = strings.Replace(field, bare, hiddenWord, 1)
		}
	}
	return strings.Join(fields, " ")
}

// isAddress reports whether word is one of the Internet, also with a port and
// without the bracket that it began with.
func isAddress(word string) bool {
	_, err := netip.ParseAddr(word)
	for _, s := range []string{word, "[" + word} {
		if err != nil {
			_, err = netip.ParseAddrPort(s)
		}
	}
	return err == nil
}

// hideWord replaces word in text, in upper or lower case, where it is not part
// of a longer one.
func hideWord(text, word string) string {
	if word == "" {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		end := i + len(word)
		if end <= len(text) && strings.EqualFold(text[i:end], word) && (i == 0 || !wordOctet(text[i-1])) && (end == len(text) || !wordOctet(text[end])) {
			b.WriteString(hiddenWord)
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
