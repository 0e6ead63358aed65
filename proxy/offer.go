package proxy

import (
	"slices"
	"strconv"
	"strings"
)

// Intersect returns what all offers have in common, spelled as in the first one.
// Offers without Mechanisms are ignored: their server was never reached, or accepts
// no login. If all are ignored, the result has no Mechanisms either.
//
// An extension keeps the parameters that all offers have; SIZE (RFC 1870) has the
// smallest limit.
func Intersect(offers ...Offer) Offer {
	known := slices.DeleteFunc(slices.Clone(offers), func(o Offer) bool { return len(o.Mechanisms) == 0 })
	if len(known) == 0 {
		return Offer{}
	}
	all := Offer{Mechanisms: slices.Clone(known[0].Mechanisms), Extensions: slices.Clone(known[0].Extensions)}
	for _, o := range known[1:] {
		all.Mechanisms = slices.DeleteFunc(all.Mechanisms, func(m string) bool { return !slices.Contains(o.Mechanisms, m) })
		all.Extensions = commonExtensions(all.Extensions, o.Extensions)
	}
	return all
}

// commonExtensions returns the lines of ours whose keyword theirs have as well.
func commonExtensions(ours, theirs []string) []string {
	var common []string
	for _, line := range ours {
		keyword, params, _ := strings.Cut(line, " ")
		for _, other := range theirs {
			if word, more, _ := strings.Cut(other, " "); strings.EqualFold(word, keyword) {
				common = append(common, strings.TrimSuffix(keyword+" "+commonParams(keyword, params, more), " "))
				break
			}
		}
	}
	return common
}

// commonParams returns the parameters of ours that theirs have as well.
func commonParams(keyword, ours, theirs string) string {
	switch {
	case strings.EqualFold(keyword, "SIZE"):
		return smallest(ours, theirs)
	case strings.EqualFold(keyword, "MAXREDIRECTS"): // RFC 5804 section 1.7
		return fewest(ours, theirs)
	}
	words := strings.Fields(theirs)
	return strings.Join(slices.DeleteFunc(strings.Fields(ours), func(word string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, word) })
	}), " ")
}

// fewest returns the lower of two numbers; "" if one is none.
func fewest(a, b string) string {
	n, err := strconv.ParseUint(a, 10, 32)
	m, err2 := strconv.ParseUint(b, 10, 32)
	if err != nil || err2 != nil {
		return ""
	}
	return strconv.FormatUint(min(n, m), 10)
}

// smallest returns the lower of two SIZE limits. An empty limit or 0 means no limit:
// RFC 1870 section 4.
func smallest(a, b string) string {
	const digits = 20 // RFC 1870 section 4
	limit := func(s string) uint64 {
		n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
		if err != nil || len(s) > digits {
			return 0
		}
		return n
	}
	switch x, y := limit(a), limit(b); {
	case y == 0:
		return a
	case x == 0, y < x:
		return b
	}
	return a
}
