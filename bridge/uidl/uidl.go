// Package uidl computes the unique-ids (UIDLs) of POP3, RFC 1939 section 7, from the
// UID and the UIDVALIDITY of a message in IMAP, and records those that cannot be
// computed. A client that sees the UIDLs that it knows does not download its mail
// again.
//
// A Format computes UIDLs. A Record has the UIDLs that were shown of one mailbox: a
// Generation for each meaning of its UIDs, with an Era for each Format that was used
// and an Entry for each message whose UIDL or Fingerprint is remembered. By their
// Fingerprints, Record.Recognize finds messages again that have got new UIDs. UIDLs
// are the names of one generation in the form that a session holds. Detect finds the
// Format of an old server.
//
// A UIDL that was shown is never changed and never given to another message, but for
// exact copies that had one UIDL on an old server.
package uidl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxLength is the most octets a unique-id may have, RFC 1939 section 7.
const MaxLength = 70

// maxComputed is the most octets of a computed unique-id without its suffix.
const maxComputed = MaxLength - 12

// names are the formats with a name, in Dovecot's notation.
var names = map[string]string{
	"dovecot":      "%08Xu%08Xv",
	"dovecot-0.99": "%v.%u",
	"cyrus":        "%v.%u", // since 2.1.4
	"cyrus-old":    "%u",    // and hMailServer
	"courier":      "%v-%u", // Cyrus's uidl_format: courier; Courier's own are not made of IMAP's UIDs
	"uw":           "%08Xv%08Xu",
}

// Names returns the names that Parse knows.
func Names() []string {
	return []string{"dovecot", "dovecot-0.99", "cyrus", "cyrus-old", "courier", "uw"}
}

// A Format computes unique-ids of 1 to 70 octets from 0x21 to 0x7E: the same one for
// the same UID and UIDVALIDITY, and another one for another UID. The zero value is
// Dovecot's default.
type Format struct {
	pattern string // as Parse takes it
	parts   []part
}

// A part is a literal, or a number and its notation.
type part struct {
	literal string
	what    byte // 'u', 'v'; 0: literal
	hex     bool
	upper   bool
	width   int // the least number of digits
}

// Dovecot is the default of Dovecot since its version 1.0: UID and
// UIDVALIDITY, eight lower-case hexadecimal digits each.
var Dovecot = must("dovecot")

func must(s string) Format {
	f, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return f
}

var (
	errFileName = errors.New("%f is the name of a maildir file, which IMAP does not show: carry the unique ids over by postern uidl import --old")
	errGUID     = errors.New("%g is Dovecot's GUID of a message, which IMAP does not show: carry the unique ids over by postern uidl import --old")
	errMD5      = errors.New("%m is the MD5 sum of an mbox header, which IMAP does not show: carry the unique ids over by postern uidl import --old")
	errNoUID    = errors.New("without %u all messages would have the same unique-id")
)

// Parse returns the format with a name, or the format of a pop3_uidl_format of Dovecot:
// in the notation of 2.4, "%{uid | hex(8)}%{uidvalidity | hex(8)}", or of earlier
// versions, "%08Xu%08Xv".
func Parse(s string) (Format, error) {
	pattern := s
	if named, ok := names[s]; ok {
		pattern = named
	} else if s != "" && !strings.Contains(s, "%") {
		return Format{}, unknownName(s)
	}
	f := Format{pattern: pattern}
	for rest := pattern; rest != ""; {
		var p part
		var err error
		if p, rest, err = cutPart(rest); err != nil {
			return Format{}, fmt.Errorf("uidl format %q: %w", s, err)
		}
		f.parts = append(f.parts, p)
	}
	if err := f.check(); err != nil {
		return Format{}, fmt.Errorf("uidl format %q: %w", s, err)
	}
	return f, nil
}

// unknownName returns the error for a word that is neither a name nor a pattern.
func unknownName(word string) error {
	hint := ""
	for _, name := range Names() {
		if lower := strings.ToLower(word); strings.HasPrefix(lower, name) || len(word) > 2 && strings.HasPrefix(name, lower) {
			hint = "is " + name + " meant? "
			break
		}
	}
	const mostWord = 40 // octets that are shown
	return fmt.Errorf("uidl format %q is no name of a format: %sthe names are %s; a format of its own has %%u in it, such as \"UID%%u-%%v\"",
		word[:min(len(word), mostWord)], hint, strings.Join(Names(), ", "))
}

func (f Format) check() error {
	uid, length := false, 0
	for _, p := range f.parts {
		uid = uid || p.what == 'u'
		for _, c := range []byte(p.literal) {
			if c < 0x21 || c > 0x7e {
				return fmt.Errorf("%q is no character of a unique-id", c)
			}
		}
		length += len(p.literal) + p.longest()
	}
	if !uid {
		return errNoUID
	}
	if length > maxComputed {
		return fmt.Errorf("up to %d octets, want at most %d", length, maxComputed)
	}
	return nil
}

// longest returns the largest number of digits of a part.
func (p part) longest() int {
	switch {
	case p.what == 0:
		return 0
	case p.hex:
		return max(p.width, 8)
	}
	return max(p.width, 10)
}

func cutPart(s string) (p part, rest string, err error) {
	i := strings.IndexByte(s, '%')
	switch {
	case i < 0:
		return part{literal: s}, "", nil
	case i > 0:
		return part{literal: s[:i]}, s[i:], nil
	case strings.HasPrefix(s, "%%"):
		return part{literal: "%"}, s[2:], nil
	case strings.HasPrefix(s, "%{"):
		inner, rest, found := strings.Cut(s[2:], "}")
		if !found {
			return part{}, "", errors.New("%{ without }")
		}
		p, err = parsePipe(inner)
		return p, rest, err
	}
	return parseOld(s[1:])
}

// parseOld parses the notation of Dovecot before 2.4 after the %: a width, modifiers
// and the letter of the variable.
func parseOld(s string) (p part, rest string, err error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if strings.HasPrefix(s[digits:], ".") || strings.HasPrefix(s, "-") {
		return part{}, "", errors.New("an offset may give two messages the same unique-id")
	}
	padded := strings.HasPrefix(s, "0")
	if digits > 0 {
		if p.width, err = strconv.Atoi(s[:digits]); err != nil || p.width > MaxLength {
			return part{}, "", errors.New("the width is too large")
		}
	}
	for s = s[digits:]; s != ""; s = s[1:] {
		switch s[0] {
		case 'X':
			p.hex = true
		case 'U':
			p.upper = true
		case 'L':
			p.upper = false
		default:
			if p.what, err = variable(s[:1]); err != nil {
				return part{}, "", err
			}
			if p, err = p.cut(padded); err != nil {
				return part{}, "", err
			}
			return p, s[1:], nil
		}
	}
	return part{}, "", errors.New("% without the letter of a variable")
}

// cut handles a width without a leading 0, which does not pad but cuts.
func (p part) cut(padded bool) (part, error) {
	width := p.width
	if padded || width == 0 {
		return p, nil
	}
	if p.width = 0; width < p.longest() {
		return part{}, fmt.Errorf("a width of %d without 0 cuts numbers off, which may give two messages the same unique-id", width)
	}
	return p, nil
}

// parsePipe parses the notation of Dovecot 2.4 within the braces: "uid | hex(8)".
func parsePipe(s string) (p part, err error) {
	words := strings.Split(s, "|")
	if p.what, err = variable(strings.TrimSpace(words[0])); err != nil {
		return part{}, err
	}
	for _, word := range words[1:] {
		name, args, _ := strings.Cut(strings.TrimSpace(word), "(")
		args = strings.TrimSpace(strings.TrimSuffix(args, ")"))
		switch {
		case name == "hex" && !p.hex:
			p.hex = true
			if args == "" {
				continue
			}
			if p.width, err = strconv.Atoi(args); err != nil || p.width < 8 || p.width > MaxLength {
				return part{}, fmt.Errorf("hex(%s): a width from 8 on is needed, so that no two messages get the same unique-id", args)
			}
		case name == "upper" && args == "":
			p.upper = true
		case name == "lower" && args == "":
			p.upper = false
		default:
			return part{}, fmt.Errorf("%q is not supported: hex, lower and upper are", strings.TrimSpace(word))
		}
	}
	return p, nil
}

func variable(name string) (byte, error) {
	switch name {
	case "u", "uid":
		return 'u', nil
	case "v", "uidvalidity":
		return 'v', nil
	case "f", "filename":
		return 0, errFileName
	case "g", "guid":
		return 0, errGUID
	case "m", "md5":
		return 0, errMD5
	}
	return 0, fmt.Errorf("%q is no variable of a unique-id: u (uid) and v (uidvalidity) are", name)
}

// String returns the pattern, from which Parse makes the same Format.
func (f Format) String() string {
	if f.parts == nil {
		return Dovecot.pattern
	}
	return f.pattern
}

// Append appends the unique-id of a message to dst.
func (f Format) Append(dst []byte, uid, uidValidity uint32) []byte {
	if f.parts == nil {
		f = Dovecot
	}
	for i := range f.parts {
		p := &f.parts[i]
		switch p.what {
		case 'u':
			dst = p.appendNumber(dst, uid)
		case 'v':
			dst = p.appendNumber(dst, uidValidity)
		default:
			dst = append(dst, p.literal...)
		}
	}
	return dst
}

func (p *part) appendNumber(dst []byte, n uint32) []byte {
	var b [MaxLength]byte
	i := len(b)
	if p.hex {
		digits := "0123456789abcdef"
		if p.upper {
			digits = "0123456789ABCDEF"
		}
		for n > 0 || len(b)-i < max(p.width, 1) {
			i--
			b[i] = digits[n&0xf]
			n >>= 4
		}
		return append(dst, b[i:]...)
	}
	for n > 0 || len(b)-i < max(p.width, 1) {
		i--
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return append(dst, b[i:]...)
}

// distinct reports whether the format never computes the same unique-id for two
// UIDVALIDITYs: a unique-id has both numbers, and their ends are unambiguous.
func (f Format) distinct() bool {
	if f.parts == nil {
		f = Dovecot
	}
	validity, open, between := false, false, ""
	for _, p := range f.parts {
		if p.what == 0 {
			between += p.literal
			continue
		}
		validity = validity || p.what == 'v'
		length := p.hex && p.width >= 8 || p.width >= 10
		if open && !length && strings.Trim(between, "0123456789abcdefABCDEF") == "" {
			return false
		}
		open, between = !length, ""
	}
	return validity
}

// Valid reports whether s is a valid unique-id, RFC 1939 section 7: 1 to 70 octets from
// 0x21 to 0x7E.
func Valid(s string) bool { return valid(s) }

func valid[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= MaxLength
}

// uidOf returns the UID for which the format computes id with a UIDVALIDITY. ok is false
// if there is none.
func (f Format) uidOf(id string, uidValidity uint32) (uid uint32, ok bool) {
	if f.parts == nil {
		f = Dovecot
	}
	var before []byte // the octets before the first number of the UID
	for i := range f.parts {
		p := &f.parts[i]
		if p.what != 'u' {
			before = append(before, Format{parts: f.parts[i : i+1]}.Append(nil, 0, uidValidity)...)
			continue
		}
		base := 10
		if p.hex {
			base = 16
		}
		if len(before) > len(id) || id[:len(before)] != string(before) {
			return 0, false
		}
		digits := id[len(before):]
		for n := min(p.longest(), len(digits)); n > 0; n-- {
			number, err := strconv.ParseUint(digits[:n], base, 32)
			if err == nil && string(f.Append(nil, uint32(number), uidValidity)) == id {
				return uint32(number), true
			}
		}
		return 0, false
	}
	return 0, false
}
