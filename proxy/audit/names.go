package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

const (
	maxSeen = 1 << 17 // accounts that a Log remembers: 8 octets each, and the map's own
	maxName = 256     // octets of a client's word in a log line
)

// Key returns the key of Hash. It must be stored nowhere: who has the log and the key can
// find out whether a hashed name is a certain password.
func (l *Log) Key() []byte { return l.key }

// SetKey sets the key of Hash to that of another Log. It must be called before the first
// event, and ignores a key of another length.
func (l *Log) SetKey(key []byte) {
	if len(key) == len(l.key) {
		l.key = key
	}
}

// A NameHash is the keyed hash of a name. As text it has 16 hexadecimal digits.
type NameHash uint64

// String returns h as an account_hash of a line.
func (h NameHash) String() string { return fmt.Sprintf("%016x", uint64(h)) }

// Hash returns the hash that a line has in place of a name: the same for the same name as
// long as the Log has the same key.
func (l *Log) Hash(name string) NameHash {
	if l.HashFirst != nil {
		name = l.HashFirst(name)
	}
	return l.HashOf(name)
}

// HashOf returns the Hash of the name for which HashFirst has returned first.
func (l *Log) HashOf(first string) NameHash {
	h := hmac.New(sha256.New, l.key)
	h.Write([]byte(first))
	return NameHash(binary.BigEndian.Uint64(h.Sum(nil)))
}

// shapeOf says what shape a name has that may not be written.
func (l *Log) shapeOf(name string) string {
	at := strings.LastIndexByte(name, '@')
	switch {
	case at < 0:
		return "no_domain"
	case l.KnownDomain != nil && l.KnownDomain(name[at+1:]):
		return "known_domain"
	}
	return "unknown_domain"
}

// remember makes account one whose name may be written.
func (l *Log) remember(account string) {
	d := l.Hash(account)
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

// Forget makes an account one whose name may not be written, unless Known reports that it
// exists.
func (l *Log) Forget(account string) {
	d := l.Hash(account)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, d)
}

// isKnown reports whether account exists, so that it is no mistyped password.
func (l *Log) isKnown(account string) bool {
	if l.Known != nil && l.Known(account) {
		return true
	}
	d := l.Hash(account)
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
