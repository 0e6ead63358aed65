package password

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// A hashed is a slow hash of a password.
type hashed interface {
	verify(password []byte) bool
	memory() int64 // in octets, while verify runs
}

// The most that a hash may cost.
const (
	maxPassword = 1 << 10 // octets: a longer password is wrong
	maxBcrypt   = 15      // a cost of 15 takes about 3 s
	maxMemory   = 1 << 20 // KiB, of argon2id
	maxTime     = 64
	maxThreads  = 16
)

// parseHash returns the hash in text, as doveadm pw and htpasswd write it. The error does
// not contain text.
func parseHash(text string) (hashed, error) {
	scheme := ""
	if rest, ok := strings.CutPrefix(text, "{"); ok {
		scheme, text, ok = strings.Cut(rest, "}")
		if scheme = strings.ToUpper(scheme); !ok {
			return nil, errors.New("the scheme of the hash has no end: write {SHA512-CRYPT}, for example")
		}
	}
	crypt := scheme == "" || scheme == "CRYPT"
	switch {
	case (crypt || scheme == "BLF-CRYPT") && strings.HasPrefix(text, "$2"):
		return parseBcrypt(text)
	case (crypt || scheme == "ARGON2ID") && strings.HasPrefix(text, "$argon2id$"):
		return parseArgon2id(text)
	case (crypt || scheme == "SHA512-CRYPT") && strings.HasPrefix(text, "$6$"):
		return parseSHA512Crypt(text)
	case scheme != "" && !crypt:
		return nil, fmt.Errorf("the scheme %.20q is not one of BLF-CRYPT, ARGON2ID and SHA512-CRYPT: %s", scheme, remake)
	}
	return nil, errors.New("the hash is not one of bcrypt, argon2id and SHA512-CRYPT: " + remake)
}

// remake is what to do about a weak hash.
const remake = "a weak hash is as good as the password for who reads the file; let the user set the password anew, and write its hash with doveadm pw -s ARGON2ID or htpasswd -B"

type bcryptHash string

func parseBcrypt(text string) (hashed, error) {
	// 2y is what PHP and htpasswd call 2b.
	if rest, ok := strings.CutPrefix(text, "$2y$"); ok {
		text = "$2b$" + rest
	}
	const length = 60
	cost, err := bcrypt.Cost([]byte(text))
	switch {
	case err != nil || len(text) != length || !strings.HasPrefix(text, "$2a$") && !strings.HasPrefix(text, "$2b$"):
		return nil, errors.New("the hash is cut off, or not one of bcrypt")
	case cost > maxBcrypt:
		return nil, fmt.Errorf("the cost of the bcrypt hash is %d, and may be %d: a login would take too long", cost, maxBcrypt)
	}
	return bcryptHash(text), nil
}

// verify implements hashed. bcrypt takes 72 octets of a password, and htpasswd and doveadm
// drop what is behind them without a word.
func (h bcryptHash) verify(password []byte) bool {
	const most = 72
	return bcrypt.CompareHashAndPassword([]byte(h), password[:min(len(password), most)]) == nil
}

func (bcryptHash) memory() int64 { return 0 }

// An argon2idHash is a hash of RFC 9106 in the form of its reference implementation.
type argon2idHash struct {
	kib, time uint32
	threads   uint8
	salt, sum []byte
}

func parseArgon2id(text string) (hashed, error) {
	parts := strings.Split(text, "$") // "", argon2id, v=19, m=...,t=...,p=..., salt, hash
	h := &argon2idHash{}
	if len(parts) != 6 || parts[2] != "v=19" {
		return nil, errors.New("the hash is cut off, or not one of argon2id version 19")
	}
	var threads uint32
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.kib, &h.time, &threads); err != nil || n != 3 {
		return nil, errors.New("the parameters of the argon2id hash are not three numbers such as m=65536,t=3,p=1")
	}
	if h.kib < 8 || h.kib > maxMemory || h.time < 1 || h.time > maxTime || threads < 1 || threads > maxThreads {
		return nil, fmt.Errorf("the argon2id hash needs more than a login may: m is 8 to %d, t 1 to %d, p 1 to %d", maxMemory, maxTime, maxThreads)
	}
	h.threads = uint8(threads)
	var errSalt, errSum error
	h.salt, errSalt = base64.RawStdEncoding.DecodeString(parts[4])
	h.sum, errSum = base64.RawStdEncoding.DecodeString(parts[5])
	const leastSalt, leastSum, most = 8, 16, 64 // octets
	if errSalt != nil || errSum != nil || len(h.salt) < leastSalt || len(h.salt) > most || len(h.sum) < leastSum || len(h.sum) > most {
		return nil, errors.New("the salt or the hash of argon2id is cut off")
	}
	return h, nil
}

// verify implements hashed.
func (h *argon2idHash) verify(password []byte) bool {
	sum := argon2.IDKey(password, h.salt, h.time, h.kib, h.threads, uint32(len(h.sum)))
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}

// memory implements hashed.
func (h *argon2idHash) memory() int64 { return int64(h.kib) << 10 }
