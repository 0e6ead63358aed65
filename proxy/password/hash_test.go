package password

import (
	"encoding/base64"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"
)

// The vectors of "Unix crypt using SHA-256 and SHA-512", version 0.6, as crypt(3) writes
// them: with the salt cut off at 16 characters, and at least 1,000 rounds.
var sha512Vectors = []struct{ hash, password string }{
	{"$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1", "Hello world!"},
	{"$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.", "Hello world!"},
	{"$6$rounds=5000$toolongsaltstrin$lQ8jolhgVRVhY4b5pZKaysCLi0QBxGoNeKQzQ3glMhwllF7oGDZxUhx1yxdYcz/e1JSbq3y6JMxxl8audkUEm0", "This is just a test"},
	{"$6$rounds=1400$anotherlongsalts$POfYwTEok97VWcjxIiSOjiykti.o/pQs.wPvMxQ6Fm7I6IoYN3CmLs66x9t0oSwbtEW7o7UmJEiDwGqd8p4ur1", "a very much longer text to encrypt.  This one even stretches over morethan one line."},
	{"$6$rounds=77777$short$WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0", "we have a short salt string but not a short password"},
	{"$6$rounds=123456$asaltof16chars..$BtCwjqMJGx5hrJhZywWvt0RLE8uZ4oPwcelCjmw2kSYu.Ec6ycULevoBK25fs2xXgMNrCzIMVcgEJAstJeonj1", "a short string"},
	{"$6$rounds=1000$roundstoolow$kUMsbe306n21p9R.FRkW3IGn.S9NPN0x50YhH1xhLsPuWGsUSklZt58jaTfF4ZEQpyUNGc0dqbpBYYBaHHrsX.", "the minimum number is still observed"},
}

func TestSHA512CryptVectors(t *testing.T) {
	for _, c := range sha512Vectors {
		verifies(t, c.hash, c.password)
	}
}

// verifies wants the hash to be that of the password, and of no other one.
func verifies(t *testing.T, hash, password string) {
	t.Helper()
	h, err := parseHash(hash)
	if err != nil {
		t.Errorf("%.30s: %v", hash, err)
		return
	}
	if !h.verify([]byte(password)) {
		t.Errorf("%.30s...: the right password is wrong", hash)
	}
	for _, other := range []string{"", password + "x", strings.ToUpper(password), password[1:]} {
		if other != password && h.verify([]byte(other)) {
			t.Errorf("%.30s...: a wrong password is right", hash)
		}
	}
}

// Written by doveadm pw of Dovecot 2.3.19, htpasswd of Apache 2.4 and openssl passwd 3.0, for
// "secret of alice".
var writtenByTools = []string{
	"{SHA512-CRYPT}$6$p8pMwNOdZafkr72P$C5tKQ.vkQP5IxR8sXWqWsJhRRSdZlBkZ0ePtWcrSKMgxYQzKAnDZWtuyEr0GlV183DkaSEOvlyEM08pKrsPTm1",
	"{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$Aow/6UeGLnj2aLbMdmGl4Q$Vrt7JA1ShFJu+c3EIbfH/YUMCKXLDG9WZhEITXdqwKs",
	"{BLF-CRYPT}$2y$05$coH6MghMVqjv82ruOEHzX.fa2vNtaR8zeUHHPwCT7KNxgPiaDGRti",
	"{CRYPT}$2y$05$fJyKlZjXUVUDBkxbiR6T/ebCi2QL/H0/lqFsQG/OiJgYxesk4qX3O",
	"$2y$05$8yCah/hERR83ejFvAKN8Q.4F3oNR7EcnmyywgeZPn1ClDyjBwR9Qu",
	"$6$WMraaJKr9BKdm67s$F/18DhYyV5lzGh0wy704FKEV7AAfCZO/e.NVFRF9E9yI67h.en.3ZSl9ibF4AHZx9TOnhtaVpu4FQ7CAijypt0",
	"$6$rounds=1000$E/9dx1OfkQN0nO63$8Vgvf6gp5SXtNcKYXLk6wNQJaVIc4awgaxp.fki/OJ.uR60BkrlE6sS0btHzgHCIMf5Rwm8dmH3W9NimiH6qD0",
	"$6$OYn5Kt4ew0J8aOFI$ABJMTQHFpqz406hLMme.wJbDOtoYTO5mqAoouEo6DBDPCz3QH4egbwKPJyXMM3YNLK0d6NJCL2hUHSBqGfB5y/",
}

// Criterion: Hashes of bcrypt, argon2id and SHA512-CRYPT as doveadm pw, htpasswd and openssl passwd write them are read.
func TestHashesAsToolsWriteThem(t *testing.T) {
	for _, hash := range writtenByTools {
		verifies(t, hash, "secret of alice")
	}
}

func TestHashesOfTheInstalledDoveadm(t *testing.T) {
	doveadm, err := exec.LookPath("doveadm")
	if err != nil {
		t.Skip("doveadm is not installed")
	}
	for _, password := range []string{"x", "Paßwort mit Umlaut ü", strings.Repeat("0123456789", 7)} {
		for _, scheme := range []string{"SHA512-CRYPT", "ARGON2ID", "BLF-CRYPT"} {
			out, err := exec.CommandContext(t.Context(), doveadm, "pw", "-s", scheme, "-p", password).Output()
			if err != nil {
				t.Fatal(err)
			}
			verifies(t, strings.TrimSpace(string(out)), password)
		}
	}
}

// Criterion: A weak, plain or damaged hash, and one that costs more than a login may, is a mistake, and the message does not have it.
func TestWeakAndDamagedHashesAreRefused(t *testing.T) {
	sha512, argon := writtenByTools[0], writtenByTools[1]
	for name, hash := range map[string]string{
		"plain":                    "secret of alice",
		"plain with scheme":        "{PLAIN}secret of alice",
		"cleartext":                "{CLEARTEXT}secret",
		"DES":                      "rl.3StKT.4T8M",
		"MD5":                      "$1$abcdefgh$G6W0YMD4wYnkvrfHeTAmU1",
		"htpasswd's MD5":           "$apr1$abcdefgh$uXd3Lh4S1J0mW9v8bqQn30",
		"SHA1":                     "{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
		"SSHA512":                  "{SSHA512}UCXUXQUB2am9tZT+HeSdlTi+BGnu9DHAyzQNX+tJF6CIAU12xQW9a1Htc1nl10UJ3Id2/ciqlZ32G4jF4nNzeXiPCnI=",
		"SHA256-CRYPT":             "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc8",
		"argon2i":                  strings.Replace(argon, "{ARGON2ID}$argon2id", "$argon2i", 1),
		"scheme without end":       "{SHA512-CRYPT$6$",
		"scheme of another hash":   strings.Replace(sha512, "{SHA512-CRYPT}", "{BLF-CRYPT}", 1),
		"bcrypt cut off":           writtenByTools[4][:59],
		"bcrypt too slow":          "$2y$31$8yCah/hERR83ejFvAKN8Q.4F3oNR7EcnmyywgeZPn1ClDyjBwR9Qu",
		"bcrypt 2x":                "$2x$05$8yCah/hERR83ejFvAKN8Q.4F3oNR7EcnmyywgeZPn1ClDyjBwR9Qu",
		"SHA512 cut off":           sha512[:len(sha512)-1],
		"SHA512 other characters":  sha512[:len(sha512)-1] + "!",
		"SHA512 impossible end":    sha512[:len(sha512)-1] + "z",
		"SHA512 rounds":            "$6$rounds=999999999$" + strings.TrimPrefix(sha512, "{SHA512-CRYPT}$6$"),
		"SHA512 no rounds":         "$6$rounds=$" + strings.TrimPrefix(sha512, "{SHA512-CRYPT}$6$"),
		"argon2id cut off":         argon[:len(argon)-30],
		"argon2id all memory":      strings.Replace(argon, "m=65536", "m=4294967295", 1),
		"argon2id negative memory": strings.Replace(argon, "m=65536", "m=-1", 1),
		"argon2id all time":        strings.Replace(argon, "t=3", "t=100000", 1),
		"argon2id no thread":       strings.Replace(argon, "p=1", "p=0", 1),
		"argon2id 300 threads":     strings.Replace(argon, "p=1", "p=300", 1),
		"argon2id old version":     strings.Replace(argon, "v=19", "v=16", 1),
		"empty":                    "",
		"locked":                   "!",
	} {
		h, err := parseHash(hash)
		switch {
		case err == nil:
			t.Errorf("%s: %T, want an error", name, h)
		case len(hash) > 2 && strings.Contains(err.Error(), strings.TrimPrefix(hash, "{PLAIN}")):
			t.Errorf("%s: the message has the hash: %v", name, err)
		}
	}
}

func FuzzParseHash(f *testing.F) {
	for _, hash := range writtenByTools {
		f.Add(hash)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHash(text)
		if err == nil && h.memory() > maxMemory<<10 {
			t.Errorf("a hash needs %d octets", h.memory())
		}
	})
}

// argonSum returns the hash in argon2id with one pass and one thread, in base64.
func argonSum(t testing.TB, password, salt string, kib uint32) string {
	t.Helper()
	return base64.RawStdEncoding.EncodeToString(argon2.IDKey([]byte(password), []byte(salt), 1, kib, 1, 32))
}

// BenchmarkVerify is a right password in each kind of hash, as doveadm pw makes it by
// default.
func BenchmarkVerify(b *testing.B) {
	for name, hash := range map[string]string{
		"sha512-crypt": writtenByTools[0], "argon2id-64MiB-t3": writtenByTools[1], "bcrypt-5": writtenByTools[2],
	} {
		b.Run(name, func(b *testing.B) {
			h, err := parseHash(hash)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if !h.verify([]byte("secret of alice")) {
					b.Fatal("wrong")
				}
			}
		})
	}
}
