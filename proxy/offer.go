package proxy

import (
	"slices"
	"strconv"
	"strings"
)

// Intersect returns what all of offers have in common, in the words of the
// first. One without Mechanisms does not count: its server was never reached,
// or takes no login. If none counts, neither does the result.
//
// Of an extension with parameters the common ones are left; of SIZE, RFC 1870,
// the smallest limit.
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

func commonParams(keyword, ours, theirs string) string {
	if strings.EqualFold(keyword, "SIZE") {
		return smallest(ours, theirs)
	}
	words := strings.Fields(theirs)
	return strings.Join(slices.DeleteFunc(strings.Fields(ours), func(word string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, word) })
	}), " ")
}

// smallest returns the lower one of two limits of SIZE; none, and 0, is no
// limit: RFC 1870 section 4.
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
