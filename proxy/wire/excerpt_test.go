package wire

import (
	"strings"
	"testing"
)

func TestExcerptCutsNoCharacter(t *testing.T) {
	for _, c := range []struct {
		s     string
		limit int
		want  string
	}{
		{"", 3, ""},
		{"abc", 3, "abc"},
		{"abcd", 3, "abc"},
		{"grün", 3, "gr"},
		{"grün", 4, "grü"},
		{"a€", 3, "a"},
		{"a€", 2, "a"},
		{"a€b", 4, "a€"},
		{"a😀b", 4, "a"},
		{"a😀b", 5, "a😀"},
		{"€", 0, ""},
		{strings.Repeat("\x80", 9), 5, strings.Repeat("\x80", 5)},
	} {
		if got := Excerpt(c.s, c.limit); got != c.want {
			t.Errorf("Excerpt(%q, %d) = %q, want %q", c.s, c.limit, got, c.want)
		}
	}
}
