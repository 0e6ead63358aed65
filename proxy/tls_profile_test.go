package proxy_test

import (
	"slices"
	"testing"

	"postern/proxy"
)

func TestEachProfileTakesAllOfTheStricter(t *testing.T) {
	for i, name := range proxy.Profiles() {
		p, ok := proxy.ParseProfile(name)
		if !ok || p.String() != name || int(p) != i {
			t.Fatalf("ParseProfile(%q) = %v, %v", name, p, ok)
		}
		if i == 0 {
			continue
		}
		stricter := proxy.Profile(i - 1)
		if p.MinVersion() > stricter.MinVersion() || len(p.CipherSuites()) <= len(stricter.CipherSuites()) {
			t.Errorf("%v takes no more than %v", p, stricter)
		}
		for _, id := range stricter.CipherSuites() {
			if !slices.Contains(p.CipherSuites(), id) {
				t.Errorf("%v lacks %#x, which %v has", p, id, stricter)
			}
		}
	}
	if _, ok := proxy.ParseProfile("intermediate"); ok {
		t.Error("there is a profile of that name")
	}
}
