package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"unicode"
)

const (
	maxSeen = 1 << 17 // accounts that a Log remembers: 8 octets each, and the map's own
	maxName = 256     // octets of a client's word in a log line
)

// digest returns the hash that a line has in place of a name.
func (l *Log) digest(name string) string {
	d := l.hash(name)
	return hex.EncodeToString(d[:])
}

func (l *Log) hash(name string) (d [8]byte) {
	h := hmac.New(sha256.New, l.key)
	h.Write([]byte(name))
	copy(d[:], h.Sum(nil))
	return d
}

// remember makes account one whose name may be written.
func (l *Log) remember(account string) {
	d := l.hash(account)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.seen) >= maxSeen {
		for k := range l.seen { // any one: the order of a map is random
			delete(l.seen, k)
			break
		}
	}
	l.seen[d] = struct{}{}
}

// isKnown reports whether account exists, so that it is no mistyped password.
func (l *Log) isKnown(account string) bool {
	if l.Known != nil && l.Known(account) {
		return true
	}
	d := l.hash(account)
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.seen[d]
	return ok
}

// printable returns an account, or another word of a client, as one printable line
// without control characters and bidirectional text.
func printable(s string) string {
	if len(s) > maxName {
		s = s[:maxName-len("...")] + "..." // half a rune at the cut becomes one ?
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// printableASCII returns a server name or ALPN protocol that a client sent, in printable
// ASCII.
func printableASCII(name string) string {
	const longest = 253 // RFC 1035 section 2.3.4
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, name[:min(len(name), longest)])
}

// idOf returns an IMAP ID (RFC 2971) as one line.
func idOf(id map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(id)) {
		words = append(words, key+"="+id[key])
	}
	return printable(strings.Join(words, " "))
}
