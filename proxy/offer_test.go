package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"postern/proxy"
)

// offer makes an Offer of "PLAIN,LOGIN: SIZE 10, DSN".
func offer(text string) proxy.Offer {
	mechanisms, extensions, _ := strings.Cut(text, ":")
	var o proxy.Offer
	if mechanisms != "" {
		o.Mechanisms = strings.Split(mechanisms, ",")
	}
	for line := range strings.SplitSeq(extensions, ",") {
		if line = strings.TrimSpace(line); line != "" {
			o.Extensions = append(o.Extensions, line)
		}
	}
	return o
}

// Criterion: what is announced before login is the intersection over all backends, SIZE the smallest, mechanisms included.
func TestIntersectKeepsWhatAllHave(t *testing.T) {
	for _, test := range []struct {
		offers string // one a line
		want   string
	}{
		{"PLAIN:DSN, SIZE 10", "PLAIN:DSN,SIZE 10"},
		{"PLAIN:SIEVE fileinto vacation, MAXREDIRECTS 4\nPLAIN:SIEVE vacation regex, MAXREDIRECTS 0", "PLAIN:SIEVE vacation,MAXREDIRECTS 0"},
		{"PLAIN,XOAUTH2:DSN,CHUNKING\nXOAUTH2,PLAIN:chunking", "PLAIN,XOAUTH2:CHUNKING"},
		{"PLAIN,LOGIN:DSN\nPLAIN:8BITMIME", "PLAIN:"},
		{"PLAIN:SIZE 10\nPLAIN:size 9\nPLAIN:SIZE 11", "PLAIN:SIZE 9"},
		{"PLAIN:SIZE\nPLAIN:SIZE 9", "PLAIN:SIZE 9"},
		{"PLAIN:SIZE 9\nPLAIN:SIZE 0", "PLAIN:SIZE 9"},
		{"PLAIN:SIZE\nPLAIN:SIZE 0", "PLAIN:SIZE"},
		{"PLAIN:SIZE 0\nPLAIN:SIZE", "PLAIN:SIZE 0"},
		{"PLAIN:SIZE x\nPLAIN:SIZE 7", "PLAIN:SIZE 7"},
		{"PLAIN:SIZE 10\nPLAIN:DSN", "PLAIN:"},
		{"PLAIN:LIMITS A=1 B=2\nPLAIN:LIMITS B=2 C=3", "PLAIN:LIMITS B=2"},
		{"PLAIN:LIMITS A=1\nPLAIN:LIMITS B=2", "PLAIN:LIMITS"},
		{":DSN\nPLAIN:SIZE 1", "PLAIN:SIZE 1"}, // the first was never reached
		{"PLAIN:IMAP4rev1,IDLE\nPLAIN:IMAP4REV1,MOVE", "PLAIN:IMAP4rev1"},
		{":DSN", ":"},
		{"", ":"},
	} {
		var offers []proxy.Offer
		for line := range strings.SplitSeq(test.offers, "\n") {
			offers = append(offers, offer(line))
		}
		got := proxy.Intersect(offers...)
		if s := strings.Join(got.Mechanisms, ",") + ":" + strings.Join(got.Extensions, ","); s != test.want {
			t.Errorf("Intersect of %q = %s, want %s", test.offers, s, test.want)
		}
	}
}

// No Mechanisms means that nothing is known; none in common is known well.
func TestIntersectOfNothingInCommonIsKnown(t *testing.T) {
	if got := proxy.Intersect(offer("PLAIN:"), offer("XOAUTH2:")); got.Mechanisms == nil {
		t.Error("Mechanisms = nil, want none")
	}
	if got := proxy.Intersect(); got.Mechanisms != nil {
		t.Errorf("Intersect() = %v, want nothing known", got)
	}
}

func TestIntersectLeavesTheOffersAlone(t *testing.T) {
	a, b := offer("PLAIN,XOAUTH2:DSN,SIZE 10"), offer("XOAUTH2:SIZE 5")
	before := fmt.Sprint(a, b)
	proxy.Intersect(a, b)
	if after := fmt.Sprint(a, b); after != before {
		t.Errorf("offers are %s, were %s", after, before)
	}
}
