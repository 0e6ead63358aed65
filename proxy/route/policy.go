package route

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// A Policy says which protocols an account may use. It reads a text file of
// lines as File does, with words behind each key that switch a protocol on or
// off:
//
//   - pop3:off
//     @example.org       pop3:on
//     bob@example.org    pop3:off submission:off
//
// For each protocol the account's own line decides, then its domain's, then *;
// what is said nowhere is on.
type Policy struct{ lines *lines }

// OpenPolicy returns a Policy that has read path.
func OpenPolicy(path string) (*Policy, error) {
	l, err := openLines(path, checkPolicy)
	if err != nil {
		return nil, err
	}
	return &Policy{l}, nil
}

func checkPolicy(rest string) error {
	if rest == "" {
		return errors.New("nothing is said: write pop3:off")
	}
	said := make(map[string]bool)
	for word := range strings.FieldsSeq(rest) {
		protocol, state, _ := strings.Cut(word, ":")
		if !slices.Contains([]string{proxy.IMAP, proxy.POP3, proxy.Submission}, protocol) || state != "on" && state != "off" {
			return errors.New("a word is not imap, pop3 or submission with :on or :off")
		}
		if said[protocol] {
			return errors.New(protocol + " is said twice")
		}
		said[protocol] = true
	}
	return nil
}

// Watch is as File.Watch.
func (p *Policy) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	p.lines.watch(ctx, every, log)
}

// Off reports whether account may not use protocol.
func (p *Policy) Off(account, protocol string) bool {
	t := p.lines.table.Load()
	for _, key := range keys(account) {
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
func (p *Policy) Known(account string) bool { return p.lines.known(account) }
