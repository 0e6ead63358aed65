package uidl

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Criterion: the formats of Dovecot, Cyrus, UW and their like are known by name and as Dovecot's pop3_uidl_format, of 2.4 and of before.
func TestFormats(t *testing.T) {
	for _, test := range []struct {
		format           string
		uid, uidValidity uint32
		want             string
	}{
		{"dovecot", 0x16b, 0x22caa, "0000016b00022caa"},
		{"dovecot", 1, 1700000000, "000000016553f100"},
		{"dovecot", 4294967295, 4294967295, "ffffffffffffffff"},
		{"dovecot-0.99", 5, 1700000000, "1700000000.5"},
		{"cyrus", 5, 1700000000, "1700000000.5"},
		{"cyrus-old", 5, 1700000000, "5"},
		{"courier", 5, 1700000000, "1700000000-5"},
		{"uw", 0x4c2d, 0x47b1303d, "47b1303d00004c2d"},
		{"%08Xu%08Xv", 0x16b, 0x22caa, "0000016b00022caa"},
		{"%{uid | hex(8)}%{uidvalidity | hex(8)}", 0x16b, 0x22caa, "0000016b00022caa"},
		{"%{uid|hex(8)}%{uidvalidity|hex(8)}", 0x16b, 0x22caa, "0000016b00022caa"},
		{"%{uid | hex(8) | upper}", 0xab, 1, "000000AB"},
		{"%{uidvalidity}.%{uid}", 5, 17, "17.5"},
		{"%{uidvalidity | hex}-%{uid | hex | lower}", 255, 16, "10-ff"},
		{"UID%u-%v", 5, 17, "UID5-17"},
		{"%v.%u", 0, 0, "0.0"},
		{"%010u", 5, 1, "0000000005"},
		{"%10u%8Xv", 5, 0xab, "5ab"},
		{"%Xu", 0xab, 1, "ab"},
		{"%UXu", 0xab, 1, "AB"},
		{"%08UXu", 0xab, 1, "000000AB"},
		{"100%%%u", 5, 1, "100%5"},
	} {
		f, err := Parse(test.format)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := string(f.Append([]byte("3 "), test.uid, test.uidValidity)); got != "3 "+test.want {
			t.Errorf("%s of %d, %d = %s, want 3 %s", test.format, test.uid, test.uidValidity, got, test.want)
		}
		if again, err := Parse(f.String()); err != nil || again.String() != f.String() {
			t.Errorf("%s is %s, and then %s, %v", test.format, f, again, err)
		}
	}
	for _, name := range Names() {
		if _, err := Parse(name); err != nil || names[name] == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := string(Format{}.Append(nil, 1, 2)), "0000000100000002"; got != want || (Format{}).String() != "%08Xu%08Xv" {
		t.Errorf("the zero value gives %s, %s, want %s", got, Format{}, want)
	}
}

// Criterion: a format that cannot be computed from what IMAP shows is refused with the reason and the way out.
func TestFormatsThatAreRefused(t *testing.T) {
	for format, want := range map[string]string{
		"":                             "without %u",
		"%v":                           "without %u",
		"abc":                          "names are dovecot, dovecot-0.99, cyrus, cyrus-old, courier, uw",
		"exim":                         "names are dovecot, dovecot-0.99, cyrus, cyrus-old, courier, uw",
		"Dovecot":                      "is dovecot meant?",
		"Courier-IMAP":                 "is courier meant?",
		"abc%%":                        "without %u",
		"%g":                           "import",
		"%f":                           "import",
		"%m":                           "import",
		"%Mf":                          "no variable",
		"%{guid}":                      "import",
		"%{filename}":                  "import",
		"%{md5}":                       "import",
		"%d%u":                         "no variable",
		"%u ":                          "no character",
		"ü%u":                          "no character",
		"%u\x7f":                       "no character",
		"%5u":                          "cuts",
		"%4Xu":                         "cuts",
		"%2.4u":                        "offset",
		"%-8u":                         "offset",
		"%{uid | hex(4)}":              "width",
		"%{uid | hex(-8)}":             "width",
		"%{uid | substr(1)}":           "not supported",
		"%{uid":                        "without }",
		"%u%":                          "letter",
		"%08X":                         "letter",
		"%099999999999999999999u":      "too large",
		"%u" + strings.Repeat("x", 60): "at most",
	} {
		if f, err := Parse(format); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, %v, want an error with %q", format, f, err, want)
		}
	}
	if _, err := Parse("%g"); !errors.Is(err, errGUID) {
		t.Error(err)
	}
}

func TestDistinctFormats(t *testing.T) {
	for format, want := range map[string]bool{
		"dovecot": true, "uw": true, "cyrus": true, "courier": true, "UID%u-%v": true, "%u%08Xv": true, "%010v%u": true,
		"cyrus-old": false, "%u%v": false, "%u1%v": false, "%Xu%v": false,
	} {
		if f, _ := Parse(format); f.distinct() != want {
			t.Errorf("%s is distinct: %v, want %v", format, !want, want)
		}
	}
}

func FuzzFormat(f *testing.F) {
	for _, name := range Names() {
		f.Add(names[name], uint32(1), uint32(2), uint32(3))
	}
	f.Add("%{uid | hex(8)}%{uidvalidity | hex(8)}", uint32(1), uint32(20), uint32(300))
	f.Add("a%%%08UXu%10v", uint32(1), uint32(20), uint32(300))
	f.Fuzz(func(t *testing.T, pattern string, uid, other, uidValidity uint32) {
		format, err := Parse(pattern)
		if err != nil {
			return
		}
		a, b := string(format.Append(nil, uid, uidValidity)), string(format.Append(nil, other, uidValidity))
		if !Valid(a) || (a == b) != (uid == other) {
			t.Errorf("%q gives %q for %d and %q for %d", pattern, a, uid, b, other)
		}
		if c := string(format.Append(nil, uid, other)); format.distinct() && (a == c) != (uidValidity == other) {
			t.Errorf("%q gives %q for %d and %q for %d", pattern, a, uidValidity, c, other)
		}
		if pattern == names["dovecot"] && a != fmt.Sprintf("%08x%08x", uid, uidValidity) {
			t.Errorf("Dovecot's format gives %q for %d, %d", a, uid, uidValidity)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	var dst []byte
	for b.Loop() {
		dst = Dovecot.Append(dst[:0], 12345, 1700000000)
	}
}
