package wire

import (
	"bytes"
	"errors"
	"testing"
)

func TestDecodeSASLIsStrict(t *testing.T) {
	for in, want := range map[string]string{"": "", "AGEAYg==": "\x00a\x00b", "YWJj": "abc"} {
		if got, err := DecodeSASL([]byte(in)); string(got) != want || err != nil {
			t.Errorf("DecodeSASL(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"=", "AGEAYg", "AGEAYg=", "A\rGEAYg==", "AGEA\nYg==", "AGEAYg== ", " AGEAYg==", "AGEA-_==", "*", "YWJj=", "\x00"} {
		if got, err := DecodeSASL([]byte(in)); !errors.Is(err, ErrBase64) {
			t.Errorf("DecodeSASL(%q) = %q, %v, want ErrBase64", in, got, err)
		}
	}
}

func TestDecodeInitialTakesEqualsForEmpty(t *testing.T) {
	got, err := DecodeInitial([]byte("="))
	if got == nil || len(got) != 0 || err != nil {
		t.Errorf(`DecodeInitial("=") = %q, %v`, got, err)
	}
	if _, err := DecodeInitial([]byte("==")); !errors.Is(err, ErrBase64) {
		t.Errorf(`DecodeInitial("==") = %v, want ErrBase64`, err)
	}
}

func TestParsePlain(t *testing.T) {
	for _, in := range []string{"", "a", "\x00", "a\x00b", "\x00\x00\x00", "\x00a\x00b\x00", "\x00a\x00b\x00c"} {
		if _, _, _, err := ParsePlain([]byte(in)); !errors.Is(err, ErrSASL) {
			t.Errorf("ParsePlain(%q) = %v, want ErrSASL", in, err)
		}
	}
	z, c, p, err := ParsePlain([]byte("boss\x00alice\x00p w"))
	if string(z) != "boss" || string(c) != "alice" || string(p) != "p w" || err != nil {
		t.Errorf("ParsePlain = %q, %q, %q, %v", z, c, p, err)
	}
}

// FuzzPlain holds that what AppendPlain writes is read again.
func FuzzPlain(f *testing.F) {
	f.Add("alice", []byte("secret"))
	f.Fuzz(func(t *testing.T, user string, password []byte) {
		msg, err := DecodeSASL(AppendPlain(nil, user, password))
		if err != nil {
			t.Fatal(err)
		}
		z, c, p, err := ParsePlain(msg)
		if bytes.IndexByte(append([]byte(user), password...), 0) >= 0 {
			if err == nil && (string(c) == user && bytes.Equal(p, password)) {
				t.Errorf("NUL went through in %q, %q", user, password)
			}
			return
		}
		if len(z) > 0 || string(c) != user || !bytes.Equal(p, password) || err != nil {
			t.Errorf("%q, %q came back as %q, %q, %q, %v", user, password, z, c, p, err)
		}
	})
}

func FuzzDecodeSASL(f *testing.F) {
	f.Add([]byte("AGEAYg=="))
	f.Add([]byte("="))
	f.Fuzz(func(t *testing.T, in []byte) {
		msg, err := DecodeInitial(in)
		if err == nil && string(in) != "=" && len(AppendSASL(nil, msg)) != len(in) {
			t.Errorf("%q decodes to %q, which has another length again", in, msg)
		}
		if err != nil && msg != nil {
			t.Errorf("DecodeInitial(%q) = %q with %v", in, msg, err)
		}
		_, _, _, _ = ParsePlain(msg)
	})
}
