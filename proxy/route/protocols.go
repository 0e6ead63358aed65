package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// Protocols say which protocols an account may use. They are read from a text
// file of lines as in File, in which words after the key switch a protocol on or
// off:
//
//   - pop3:off
//     @example.org       pop3:on
//     bob@example.org    pop3:off submission:off
//
// For each protocol the account's own line decides, then its domain's, then *. A
// protocol without a word is on.
type Protocols struct{ lines *lines }

// OpenProtocols reads the file at path. The error of a file with mistakes is a Mistakes.
func OpenProtocols(path string) (*Protocols, error) {
	l, err := openLines(path, checkProtocols)
	if err != nil {
		return nil, err
	}
	return &Protocols{l}, nil
}

func checkProtocols(rest string) error {
	if rest == "" {
		return errors.New("no protocol is named: write pop3:off")
	}
	var wrong []string
	seen := make(map[string]bool)
	for word := range strings.FieldsSeq(rest) {
		protocol, state, _ := strings.Cut(word, ":")
		if !slices.Contains([]string{proxy.IMAP, proxy.POP3, proxy.Submission}, protocol) || state != "on" && state != "off" {
			wrong = append(wrong, fmt.Sprintf("%q is not one of imap, pop3 and submission, with :on or :off behind it", shorten(word)))
		} else if seen[protocol] {
			wrong = append(wrong, protocol+" is named twice")
		}
		seen[protocol] = true
	}
	if wrong != nil {
		return errors.New(strings.Join(wrong[:min(len(wrong), 3)], "; "))
	}
	return nil
}

// Watch is like File.Watch.
func (p *Protocols) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	p.lines.watch(ctx, every, log)
}

// Off reports whether account may not use protocol.
func (p *Protocols) Off(account, protocol string) bool {
	t := p.lines.table.Load()
	for _, key := range keysOf(account) {
		rest, _ := t.get(key)
		for word := range strings.FieldsSeq(rest) {
			if name, state, _ := strings.Cut(word, ":"); name == protocol {
				return state == "off"
			}
		}
	}
	return false
}

// Known reports whether the file lists account itself.
func (p *Protocols) Known(account string) bool { return p.lines.known(account) }

// KnownDomain reports whether the file lists a domain.
func (p *Protocols) KnownDomain(domain string) bool { return p.lines.knownDomain(domain) }
