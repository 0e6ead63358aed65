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
// off, or POP3 off after its last day:
//
//   - pop3:off
//     @example.org       pop3:off-after=2027-01-31
//     bob@example.org    pop3:on submission:off
//
// For each protocol the account's own line decides, then its domain's, then *. A
// protocol without a word is on. A last day ends at midnight of the local time zone.
type Protocols struct{ lines *lines }

// OpenProtocols reads the file at path. The error of a file with mistakes is a Mistakes.
func OpenProtocols(path string) (*Protocols, error) {
	l, err := openLines(path, checkProtocols)
	if err != nil {
		return nil, err
	}
	return &Protocols{l}, nil
}

// The states of a protocol in a file.
const (
	stateOn       = "on"
	stateOff      = "off"
	stateOffAfter = "off-after="
)

func checkProtocols(rest string) error {
	if rest == "" {
		return errors.New("no protocol is named: write pop3:off")
	}
	var wrong []string
	seen := make(map[string]bool)
	for word := range strings.FieldsSeq(rest) {
		protocol, state, _ := strings.Cut(word, ":")
		if err := checkState(protocol, state); err != nil {
			wrong = append(wrong, fmt.Sprintf("%q %v", shorten(word), err))
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

// checkState returns what is wrong with a word, to be written behind it.
func checkState(protocol, state string) error {
	day, dated := strings.CutPrefix(state, stateOffAfter)
	switch {
	case !slices.Contains(proxy.Protocols(), protocol) || !dated && state != stateOn && state != stateOff:
		return errors.New("is not one of imap, pop3, submission and sieve, with :on or :off behind it, nor pop3:off-after=2027-01-31")
	case dated && protocol != proxy.POP3:
		return errors.New("has a last day, which only pop3 can have: write " + protocol + ":off")
	case dated:
		return checkLastDay(day)
	}
	return nil
}

// The years that a last day may have: outside of them a digit is wrong, and a year that is
// long past would switch POP3 off at once.
const firstYear, lastYear = 2025, 2099

func checkLastDay(day string) error {
	switch date, err := time.Parse(time.DateOnly, day); {
	case err != nil:
		return errors.New("names no day: write the last day of POP3 as in pop3:off-after=2027-01-31")
	case date.Year() < firstYear || date.Year() > lastYear:
		return fmt.Errorf("has a year that is not one of %d to %d", firstYear, lastYear)
	}
	return nil
}

// Watch is like File.Watch.
func (p *Protocols) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	p.lines.Watch(ctx, every, log)
}

// Stale is like File.Stale.
func (p *Protocols) Stale() error { return p.lines.Stale() }

// Off reports whether account may not use protocol at the time now, and the last day of
// service (2027-01-31), past or to come, if the file has one. The day ends at midnight of
// the time zone of now.
func (p *Protocols) Off(account, protocol string, now time.Time) (off bool, lastDay string) {
	t := p.lines.table.Load()
	for _, key := range keysOf(account) {
		rest, _ := t.get(key)
		for word := range strings.FieldsSeq(rest) {
			if name, state, _ := strings.Cut(word, ":"); name == protocol {
				if day, dated := strings.CutPrefix(state, stateOffAfter); dated {
					return ended(day, now), day
				}
				return state == stateOff, ""
			}
		}
	}
	return false, ""
}

// ended reports whether the day, such as 2027-01-31, is over. Days are compared, not
// instants: there are zones in which some midnights do not exist.
func ended(day string, now time.Time) bool { return now.Format(time.DateOnly) > day }

// Refusal returns why account may not use protocol now, or nil. The password must be known
// to be right.
func (p *Protocols) Refusal(account, protocol string) error {
	switch off, lastDay := p.Off(account, protocol, time.Now()); {
	case off && lastDay != "":
		return &proxy.Refusal{
			Reason: proxy.POP3Ended, Verified: true, Err: fmt.Errorf("the last day of POP3 for the account was %s", lastDay),
		}
	case off:
		return &proxy.Refusal{Reason: proxy.ProtocolOff, Verified: true, Err: fmt.Errorf("%s is off for the account", protocol)}
	}
	return nil
}

// A Switch is a word of a file that switches a protocol off, and the lines that have it.
type Switch struct {
	Protocol string
	LastDay  string // of POP3; "": off without a date
	Lines    Lines
}

// Ended reports whether s has a last day, and that is over at the time now.
func (s Switch) Ended(now time.Time) bool { return s.LastDay != "" && ended(s.LastDay, now) }

// Switches returns what the file switches off: first what is off without a date, by
// protocol, then by last day.
func (p *Protocols) Switches() []Switch {
	found := make(map[Switch]Lines) // the key has no Lines
	for rest, v := range p.lines.table.Load().values {
		for word := range strings.FieldsSeq(rest) {
			protocol, state, _ := strings.Cut(word, ":")
			if state == stateOn {
				continue
			}
			day, _ := strings.CutPrefix(state, stateOffAfter)
			if state == stateOff {
				day = ""
			}
			s := Switch{Protocol: protocol, LastDay: day}
			found[s] = found[s].Plus(v.lines)
		}
	}
	all := make([]Switch, 0, len(found))
	for s, lines := range found {
		s.Lines = lines
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Switch) int {
		return strings.Compare(a.LastDay+" "+a.Protocol, b.LastDay+" "+b.Protocol)
	})
	return all
}

// Known reports whether the file lists account itself.
func (p *Protocols) Known(account string) bool { return p.lines.known(account) }

// KnownDomain reports whether the file lists a domain.
func (p *Protocols) KnownDomain(domain string) bool { return p.lines.knownDomain(domain) }
