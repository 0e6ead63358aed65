package logs

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"postern/configs"
)

// Pseudonyms computes the names that stand for accounts in a log. An account always has
// the same pseudonym.
type Pseudonyms struct{ key []byte }

// NewPseudonyms returns the Pseudonyms for key; nil: for a random key of this process.
func NewPseudonyms(key []byte) Pseudonyms {
	if key == nil {
		key = NewPseudonymKey()
	}
	return Pseudonyms{key}
}

// NewPseudonymKey returns a random key.
func NewPseudonymKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return key
}

// Of returns the pseudonym of an account.
func (p Pseudonyms) Of(account string) string {
	h := hmac.New(sha256.New, p.key)
	h.Write([]byte(account))
	return "u-" + hex.EncodeToString(h.Sum(nil)[:8])
}

// A Redaction has the rules for client addresses and accounts in a log.
type Redaction struct {
	configs.Privacy
	Names Pseudonyms
}

// NewRedactor returns a handler that passes records to h, redacted by the present rules.
func NewRedactor(h slog.Handler, rules *atomic.Pointer[Redaction]) slog.Handler {
	return redactor{h, rules}
}

// A redactor is a slog.Handler that redacts the addresses of clients and the names of
// accounts: in their attributes, and where they appear again in other text, such as an
// error of the network.
type redactor struct {
	slog.Handler
	rules *atomic.Pointer[Redaction] // nil in it: nothing is redacted
}

// Handle implements slog.Handler.
func (d redactor) Handle(ctx context.Context, r slog.Record) error {
	rules := d.rules.Load()
	if rules == nil || rules.Full() {
		return d.Handler.Handle(ctx, r)
	}
	var attrs []slog.Attr
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	redacted := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	redacted.AddAttrs(rules.apply(attrs)...)
	return d.Handler.Handle(ctx, redacted)
}

// WithAttrs implements slog.Handler. It applies the present rules to attrs.
func (d redactor) WithAttrs(attrs []slog.Attr) slog.Handler {
	if rules := d.rules.Load(); rules != nil && !rules.Full() {
		attrs = rules.apply(attrs)
	}
	return redactor{d.Handler.WithAttrs(attrs), d.rules}
}

// WithGroup implements slog.Handler.
func (d redactor) WithGroup(name string) slog.Handler {
	return redactor{d.Handler.WithGroup(name), d.rules}
}

// A replacement is a text and the text that replaces it.
type replacement struct{ old, new string }

// apply returns attrs, redacted.
func (d *Redaction) apply(attrs []slog.Attr) []slog.Attr {
	var all []replacement
	redacted := d.hide(attrs, &all)
	for i := range redacted {
		redacted[i].Value = scrub(redacted[i].Value, all)
	}
	return redacted
}

// hide redacts addresses and accounts, and appends each replacement to all.
func (d *Redaction) hide(attrs []slog.Attr, all *[]replacement) []slog.Attr {
	redacted := make([]slog.Attr, 0, len(attrs))
	for _, a := range attrs {
		v := a.Value.Resolve()
		switch {
		case v.Kind() == slog.KindGroup:
			v = slog.GroupValue(d.hide(v.Group(), all)...)
		case a.Key == "account" && d.Users == "pseudonym" && v.String() != "":
			name := v.String()
			v = slog.StringValue(d.Names.Of(name))
			*all = append(*all, replacement{name, v.String()}, replacement{url.QueryEscape(name), v.String()})
		case a.Key == "ip" && d.Addresses != "full", a.Key == "network" && d.Addresses != "full":
			text := v.String()
			v = slog.StringValue(d.prefix(text))
			*all = append(*all, replacement{text, v.String()})
		}
		redacted = append(redacted, slog.Attr{Key: a.Key, Value: v})
	}
	return redacted
}

// Address returns an address, or a network, as the log has it.
func (d *Redaction) Address(text string) string {
	if d.Addresses == "full" {
		return text
	}
	return d.prefix(text)
}

// Account returns an account as the log has it.
func (d *Redaction) Account(name string) string {
	if d.Users == "pseudonym" {
		return d.Names.Of(name)
	}
	return name
}

// prefix returns the part of an address, or of a network, that may be logged.
func (d *Redaction) prefix(text string) string {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(text); err == nil {
			network = netip.PrefixFrom(addr.Unmap().WithZone(""), addr.Unmap().BitLen())
		}
	}
	if err != nil || d.Addresses == "none" {
		return "-"
	}
	bits := 48
	if network.Addr().Is4() {
		bits = 24
	}
	return netip.PrefixFrom(network.Addr(), min(bits, network.Bits())).Masked().String()
}

// scrub applies all replacements to text and errors.
func scrub(v slog.Value, all []replacement) slog.Value {
	var text string
	switch v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		err, ok := v.Any().(error)
		if !ok {
			return v
		}
		text = err.Error()
	case slog.KindGroup:
		attrs := v.Group()
		for i := range attrs {
			attrs[i].Value = scrub(attrs[i].Value, all)
		}
		return v
	default:
		return v
	}
	for _, h := range all {
		text = replaceWord(text, h.old, h.new)
	}
	return slog.StringValue(text)
}

// replaceWord replaces old by another text where it is no part of a longer
// name or number.
func replaceWord(text, old, other string) string {
	if old == "" || old == other {
		return text
	}
	part := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	var b strings.Builder
	for {
		i := strings.Index(text, old)
		if i < 0 {
			break
		}
		end := i + len(old)
		before, _ := utf8.DecodeLastRuneInString(text[:i])
		after, _ := utf8.DecodeRuneInString(text[end:])
		b.WriteString(text[:i])
		if part(before) || part(after) {
			b.WriteString(old)
		} else {
			b.WriteString(other)
		}
		text = text[end:]
	}
	b.WriteString(text)
	return b.String()
}
