package uidl

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	fewestToInfer = 3   // messages of which a format can be inferred: what is common to fewer may be chance
	mostSamples   = 5   // unique-ids that patterns are made of
	mostPatterns  = 500 // that are tried
	mostInferred  = 8   // formats that fit alike
)

// samples returns up to mostSamples of all, spread evenly, with the first and the last.
func samples[T any](all []T) []T {
	if len(all) <= mostSamples {
		return all
	}
	some := make([]T, mostSamples)
	for i := range some {
		some[i] = all[i*(len(all)-1)/(mostSamples-1)]
	}
	return some
}

// infer returns the formats that compute the most of shown, which nobody has named: those
// of unique-ids in which the UIDVALIDITY and the UID of a message stand between other
// characters. There is none if no format computes three unique-ids, and there are several
// if the UIDs do not show how larger ones are written.
func infer(shown []string, uids []uint32, uidValidity uint32) (best []Format) {
	if len(shown) < fewestToInfer {
		return nil
	}
	known := make(map[uint32]bool, len(uids))
	for _, uid := range uids {
		known[uid] = true
	}
	matched := func(f Format, ids []string) (n int) {
		for _, id := range ids {
			if uid, ok := f.uidOf(id, uidValidity); ok && known[uid] {
				n++
			}
		}
		return n
	}
	few := samples(shown)
	most := fewestToInfer
	seen := make(map[string]bool)
	for _, pattern := range patterns(few, known, uidValidity) {
		f, err := Parse(pattern)
		if err != nil || hasConstant(f) || seen[f.example(uidValidity)] || matched(f, few) < min(len(few)-1, fewestToInfer) {
			continue
		}
		seen[f.example(uidValidity)] = true
		n := matched(f, shown)
		if n > most {
			best, most = nil, n
		}
		if n == most && len(best) < mostInferred {
			best = append(best, f)
		}
	}
	// One without UIDVALIDITY has that of this mailbox as a literal.
	if slices.ContainsFunc(best, Format.hasValidity) {
		best = slices.DeleteFunc(best, func(f Format) bool { return !f.hasValidity() })
	}
	return best
}

// example returns what the format computes for UIDs that show how it writes them.
func (f Format) example(uidValidity uint32) string {
	var b []byte
	for _, uid := range []uint32{1, 10, 0xABCDEF, 4294967295} {
		b = append(f.Append(b, uid, uidValidity), ' ')
	}
	if f.hasValidity() {
		b = append(b, 'v')
	}
	return string(b)
}

func (f Format) hasValidity() bool {
	return slices.ContainsFunc(f.parts, func(p part) bool { return p.what == 'v' })
}

// hasConstant reports whether a literal of the format has a number in it that may be the
// UIDVALIDITY of one mailbox: the format would be wrong for all others.
func hasConstant(f Format) bool {
	return slices.ContainsFunc(f.parts, func(p part) bool { return longNumber.MatchString(p.literal) })
}

var (
	longNumber = regexp.MustCompile(`[0-9]{6}|[0-9a-f]{8}|[0-9A-F]{8}`)
	numbers    = []*regexp.Regexp{regexp.MustCompile(`[0-9]+`), regexp.MustCompile(`[0-9a-f]+`), regexp.MustCompile(`[0-9A-F]+`)}
)

// patterns returns the patterns in Dovecot's notation that compute one of ids for one of
// the UIDs in known.
func patterns(ids []string, known map[uint32]bool, uidValidity uint32) (all []string) {
	for _, id := range ids {
		if !valid(id) {
			continue
		}
		for _, v := range writings(uidValidity, "v") {
			if i := strings.Index(id, v.text); i >= 0 {
				before, after := id[:i], id[i+len(v.text):]
				for _, p := range uidPatterns(before, known) {
					all = append(all, p+v.pattern+literal(after))
				}
				for _, p := range uidPatterns(after, known) {
					all = append(all, literal(before)+v.pattern+p)
				}
			}
		}
		all = append(all, uidPatterns(id, known)...)
	}
	all = unique(all)
	return all[:min(len(all), mostPatterns)]
}

// unique removes all but the first of equal values.
func unique(all []string) []string {
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(all, func(s string) bool {
		again := seen[s]
		seen[s] = true
		return again
	})
}

// uidPatterns returns patterns that compute text for one of the UIDs in known.
func uidPatterns(text string, known map[uint32]bool) (all []string) {
	for i, number := range numbers {
		for _, at := range number.FindAllStringIndex(text, -1) {
			digits, base := text[at[0]:at[1]], 16
			if i == 0 {
				base = 10
			}
			uid, err := strconv.ParseUint(digits, base, 32)
			if err != nil || !known[uint32(uid)] {
				continue
			}
			for _, u := range writings(uint32(uid), "u") {
				if u.text == digits {
					all = append(all, literal(text[:at[0]])+u.pattern+literal(text[at[1]:]))
				}
			}
		}
	}
	return all
}

// A writing is a number as a pattern writes it.
type writing struct{ text, pattern string }

// writings returns how patterns write n, the variable of which has this letter.
func writings(n uint32, letter string) []writing {
	return []writing{
		{fmt.Sprintf("%d", n), "%" + letter},
		{fmt.Sprintf("%010d", n), "%010" + letter},
		{fmt.Sprintf("%08x", n), "%08X" + letter},
		{fmt.Sprintf("%08X", n), "%08XU" + letter},
		{fmt.Sprintf("%x", n), "%X" + letter},
		{fmt.Sprintf("%X", n), "%XU" + letter},
	}
}

func literal(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// A Copy says that unique-ids are those of a format, for other numbers than those that
// the messages have now: the mailbox was copied, and its messages got new UIDs or a new
// UIDVALIDITY.
type Copy struct {
	Format      Format
	Names       []string // of Format
	UIDValidity uint32   // that the unique-ids were made of; 0: Format has none in it
	Matched     int      // unique-ids that Format computes for these numbers
	SameUIDs    int      // of these, how many have a UID that a message has now
}

// DetectCopy returns the format that has computed nine of ten of shown for one other
// UIDVALIDITY, or for other UIDs. ok is false if there is none, and for fewer than three
// messages. It is for unique-ids for which Detect has no guess.
func DetectCopy(shown []string, uids []uint32, more ...Format) (best Copy, ok bool) {
	if len(shown) < fewestToInfer {
		return Copy{}, false
	}
	known := make(map[uint32]bool, len(uids))
	for _, uid := range uids {
		known[uid] = true
	}
	formats := slices.Clone(more)
	for _, name := range Names() {
		formats = append(formats, must(name))
	}
	formats = append(formats, must("UID%u-%v"), must("%vU%u"))
	for _, f := range formats {
		c := f.copied(shown, known)
		if c.Matched*10 < len(shown)*9 {
			continue
		}
		// Of two formats the one whose numbers are those of messages is right.
		if !ok || c.SameUIDs > best.SameUIDs {
			best, ok = c, true
		}
	}
	return best, ok
}

// copied returns how many of shown the format computes for one UIDVALIDITY.
func (f Format) copied(shown []string, known map[uint32]bool) Copy {
	c := Copy{Format: f, Names: f.names()}
	type count struct{ all, same int }
	counts := make(map[uint32]count) // by UIDVALIDITY
	read := f.reader()
	for _, id := range shown {
		uid, validity, ok := read(id)
		if !ok {
			continue
		}
		n := counts[validity]
		n.all++
		if known[uid] {
			n.same++
		}
		counts[validity] = n
	}
	for validity, n := range counts {
		if n.all > c.Matched {
			c.UIDValidity, c.Matched, c.SameUIDs = validity, n.all, n.same
		}
	}
	return c
}

// reader returns a function that reads the numbers of a unique-id: those for which the
// format computes it.
func (f Format) reader() func(id string) (uid, uidValidity uint32, ok bool) {
	var b strings.Builder
	b.WriteString("^")
	for _, p := range f.parts {
		switch {
		case p.what == 0:
			b.WriteString(regexp.QuoteMeta(p.literal))
		case p.hex:
			fmt.Fprintf(&b, "([0-9a-fA-F]{%d,%d})", max(1, p.width), p.longest())
		default:
			fmt.Fprintf(&b, "([0-9]{%d,%d})", max(1, p.width), p.longest())
		}
	}
	b.WriteString("$")
	shape := regexp.MustCompile(b.String())
	return func(id string) (uid, uidValidity uint32, ok bool) {
		found := shape.FindStringSubmatch(id)
		if found == nil {
			return 0, 0, false
		}
		i := 0
		for _, p := range f.parts {
			if p.what == 0 {
				continue
			}
			i++
			base := 10
			if p.hex {
				base = 16
			}
			n, err := strconv.ParseUint(found[i], base, 32)
			if err != nil {
				return 0, 0, false
			}
			if p.what == 'u' {
				uid = uint32(n)
			} else {
				uidValidity = uint32(n)
			}
		}
		return uid, uidValidity, uid != 0 && string(f.Append(nil, uid, uidValidity)) == id
	}
}

// Shape returns what kind of unique-id nine of ten of shown look like which no format
// computes, or "".
func Shape(shown []string) string {
	for _, s := range shapes {
		n := 0
		for _, id := range shown {
			if s.pattern.MatchString(id) {
				n++
			}
		}
		if n > 0 && n*10 >= len(shown)*9 {
			return s.name
		}
	}
	return ""
}

var shapes = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`^[0-9a-fA-F]{32}$`), "32 hexadecimal digits, as Dovecot's GUID (%g) and MD5 sums (%m) are"},
	{regexp.MustCompile(`^[0-9a-fA-F]{40}$`), "40 hexadecimal digits, as SHA-1 sums are"},
	{regexp.MustCompile(`^\{?[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\}?$`), "UUIDs (RFC 9562)"},
	{regexp.MustCompile(`^[0-9]{9,10}\.[^.]*[MPRQV_][^.]*\.`), "names of maildir files, as Dovecot's %f and its %g in a maildir are"},
	{regexp.MustCompile(`^[A-Za-z0-9+/_-]{20,}=*$`), "random characters"},
}
