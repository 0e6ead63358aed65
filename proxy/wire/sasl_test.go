package wire

import (
	"bytes"
	"errors"
	"strings"
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

func TestParseXOAUTH2(t *testing.T) {
	for in, want := range map[string][2]string{
		"user=a@b\x01auth=Bearer tok+/en==\x01\x01":             {"a@b", "tok+/en=="},
		"auth=bEARER t\x01user=a=b\x01\x01":                     {"a=b", "t"},
		"user=\x01auth=Bearer t\x01\x01":                        {"", "t"},
		"user=a\x01host=x\x01port=993\x01auth=Bearer t\x01\x01": {"a", "t"},
	} {
		user, token, err := ParseXOAUTH2([]byte(in))
		if string(user) != want[0] || string(token) != want[1] || err != nil {
			t.Errorf("ParseXOAUTH2(%q) = %q, %q, %v, want %q", in, user, token, err, want)
		}
	}
	for _, in := range []string{
		"", "\x01", "\x01\x01", "user=a\x01\x01", "auth=Bearer t\x01\x01", "user=a\x01auth=Bearer t\x01", "user=a\x01auth=Bearer t",
		"user=a\x01user=b\x01auth=Bearer t\x01\x01", "user=a\x01auth=Bearer t\x01auth=Bearer u\x01\x01", "user=a\x01auth=Bearer\x01\x01",
		"user=a\x01auth=Bearer \x01\x01", "user=a\x01auth=Basic t\x01\x01", "user=a\x01auth=Bearer t u\x01\x01",
		"user=a\x01auth=Bearer t\r\n\x01\x01", "user=a\x01auth=Bearer \xC3\xA4\x01\x01", "user=a\x01auth=Bearer t\x00\x01\x01", "user=a\x01nothing\x01auth=Bearer t\x01\x01",
		"n,a=a,\x01auth=Bearer t\x01\x01",
	} {
		if user, token, err := ParseXOAUTH2([]byte(in)); !errors.Is(err, ErrSASL) || token != nil {
			t.Errorf("ParseXOAUTH2(%q) = %q, %q, %v, want ErrSASL", in, user, token, err)
		}
	}
}

func TestParseOAuthBearer(t *testing.T) {
	for in, want := range map[string][2]string{
		// RFC 7628 section 4.1.
		"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01": {"user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="},
		"y,a=x=2Cy=3D=2C2C,\x01auth=bearer t\x01user=boss\x01\x01":                                                                       {"x,y=,2C", "t"},
		"n,a=,\x01auth=Bearer t\x01\x01": {"", "t"},
	} {
		user, token, err := ParseOAuthBearer([]byte(in))
		if string(user) != want[0] || string(token) != want[1] || err != nil {
			t.Errorf("ParseOAuthBearer(%q) = %q, %q, %v, want %q", in, user, token, err, want)
		}
	}
	for _, in := range []string{
		"", "\x01", "n,,\x01auth=Bearer t\x01\x01", "n,a=a\x01auth=Bearer t\x01\x01", "p=tls-exporter,a=a,\x01auth=Bearer t\x01\x01",
		"a=a,\x01auth=Bearer t\x01\x01", "n,a=a=,\x01auth=Bearer t\x01\x01", "n,a=a=2c,\x01auth=Bearer t\x01\x01", "n,a=a=3,\x01auth=Bearer t\x01\x01",
		"n,a=a,\x01auth=\x01\x01", "n,a=a,\x01\x01", "n,a=a,auth=Bearer t\x01\x01", "user=a\x01auth=Bearer t\x01\x01",
	} {
		if user, token, err := ParseOAuthBearer([]byte(in)); !errors.Is(err, ErrSASL) || token != nil && user != nil {
			t.Errorf("ParseOAuthBearer(%q) = %q, %q, %v, want ErrSASL", in, user, token, err)
		}
	}
}

// FuzzBearer holds that what is written is read again, and that what is read
// cannot end the message it is written to.
func FuzzBearer(f *testing.F) {
	f.Add("alice,a=b@example.org", []byte("token=="))
	f.Add("n,a=alice,\x01auth=Bearer t\x01\x01", []byte("user=alice\x01auth=Bearer t\x01\x01"))
	f.Fuzz(func(t *testing.T, user string, token []byte) {
		for _, m := range []struct {
			add   func([]byte, string, []byte) []byte
			parse func([]byte) ([]byte, []byte, error)
		}{{AppendXOAUTH2, ParseXOAUTH2}, {AppendOAuthBearer, ParseOAuthBearer}} {
			msg, err := DecodeSASL(m.add(nil, user, token))
			if err != nil {
				t.Fatal(err)
			}
			u, got, err := m.parse(msg)
			within := strings.Contains(user, "\x01") || bytes.IndexByte(token, 1) >= 0 // the caller's fault
			if err == nil && !within && (string(u) != user || !bytes.Equal(got, token)) {
				t.Errorf("%q, %q came back as %q, %q", user, token, u, got)
			}
			u, got, err = m.parse(bytes.Clone(token))
			if err != nil || bytes.IndexByte(u, 1) >= 0 {
				continue
			}
			again, _ := DecodeSASL(m.add(nil, string(u), got))
			v, back, err := m.parse(again)
			if !bytes.Equal(u, v) || !bytes.Equal(got, back) || err != nil {
				t.Errorf("%q, %q came back as %q, %q, %v", u, got, v, back, err)
			}
		}
	})
}
