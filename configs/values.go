package configs

import (
	"fmt"
	"net"
	"net/netip"
	"postern/proxy/wire"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checkDuration wants d between least, for the reason given, and a day.
func (m *mistakes) checkDuration(key string, d, least time.Duration, reason string) {
	const most = 24 * time.Hour
	switch {
	case d < least:
		m.report(key, "%s is too short; the least is %s%s", shortDuration(d), shortDuration(least), reason)
	case d > most:
		m.report(key, "%s is too long; the most is %s", shortDuration(d), shortDuration(most))
	}
}

// checkSpan checks that d is between least and most.
func (m *mistakes) checkSpan(key string, d, least, most time.Duration) {
	switch {
	case d < least:
		m.report(key, "%s is too short; the least is %s", shortDuration(d), shortDuration(least))
	case d > most:
		m.report(key, "%s is too long; the most is %s", shortDuration(d), shortDuration(most))
	}
}

func (m *mistakes) checkNumber(key string, n, most int) {
	if n < 1 || n > most {
		m.report(key, "%d is out of range; use 1 to %d", n, most)
	}
}

func (m *mistakes) checkSize(key string, s, least, most Size) {
	if s < least || s > most {
		m.report(key, "%v is out of range; use %v to %v", s, least, most)
	}
}

func (m *mistakes) checkWord(key, word, what string, known ...string) {
	switch {
	case slices.Contains(known, word):
	case word == "":
		m.report(key, "missing; use %s", joinWords(known))
	default:
		m.report(key, "%s is not %s; use %s", quote(word), what, joinWords(known))
	}
}

// short writes 35m as its author would, not 35m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// splitAddress splits host:port; the host may be empty.
func splitAddress(address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		if _, err := strconv.ParseUint(address, 10, 16); err == nil {
			return "", 0, fmt.Errorf(`%s lacks a colon; write ":%s"`, quote(address), address)
		}
		if addr, err := netip.ParseAddr(address); err == nil && addr.Is6() {
			return "", 0, fmt.Errorf(`%s lacks a port; write "[%s]:993" or another`, quote(address), address)
		}
		return "", 0, fmt.Errorf(`%s is not an address with a port, such as "192.0.2.1:993"`, quote(address))
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%s is not a port; use a number from 1 to 65535", quote(service))
	}
	return host, uint16(n), nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost") // RFC 6761 section 6.3
}

// isHost reports whether s is a host name or an IP address.
func isHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || isHostname(s)
}

// isHostname reports whether s is a host name. Underscores are allowed: they are
// seen inside private networks.
func isHostname(s string) bool {
	label := ""
	for label = range strings.SplitSeq(s, ".") {
		if len(label) > 63 || !isName(label) || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	// A last label of digits alone is an IP address gone wrong (RFC 1123 section 2.1).
	return len(s) <= 253 && strings.Trim(label, "0123456789") != ""
}

// isName reports whether s can name a listener or backend: in logs, as a label of
// metrics, in keys such as backends.main.imap.
func isName(s string) bool {
	const most = 64
	for _, r := range s {
		if (r|0x20 < 'a' || r|0x20 > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// quote returns the beginning of a value, quoted.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q...", wire.Excerpt(s, most))
	}
	return fmt.Sprintf("%q", s)
}

// joinWords returns words as "a, b or c".
func joinWords(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
