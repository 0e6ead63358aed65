package password

import (
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
)

// The rounds of SHA512-CRYPT.
const (
	defaultRounds = 5000
	leastRounds   = 1000
	mostRounds    = 10_000_000 // the specification has 999,999,999, which takes minutes
)

// A sha512Crypt is a hash by the specification "Unix crypt using SHA-256 and SHA-512",
// version 0.6, of Ulrich Drepper: $6$salt$hash, or $6$rounds=n$salt$hash.
type sha512Crypt struct {
	rounds int
	salt   string
	sum    [sha512.Size]byte
}

// cryptAlphabet has the characters of crypt(3).
const cryptAlphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func parseSHA512Crypt(text string) (*sha512Crypt, error) {
	rest, ok := strings.CutPrefix(text, "$6$")
	if !ok {
		return nil, errors.New("a SHA512-CRYPT hash begins with $6$")
	}
	c := &sha512Crypt{rounds: defaultRounds}
	if number, found := strings.CutPrefix(rest, "rounds="); found {
		number, rest, _ = strings.Cut(number, "$")
		n, err := strconv.Atoi(number)
		if err != nil || n < leastRounds || n > mostRounds {
			return nil, fmt.Errorf("the rounds are not a number from %d to %d", leastRounds, mostRounds)
		}
		c.rounds = n
	}
	salt, sum, _ := strings.Cut(rest, "$")
	const mostSalt = 16
	if len(salt) > mostSalt {
		return nil, fmt.Errorf("the salt has more than %d characters", mostSalt)
	}
	c.salt = salt
	if c.sum, ok = decodeCrypt(sum); !ok {
		return nil, errors.New("the hash is cut off, or not one of SHA512-CRYPT")
	}
	return c, nil
}

// decodeCrypt returns the octets that crypt(3) has written as 86 characters.
func decodeCrypt(text string) (sum [sha512.Size]byte, ok bool) {
	const characters = 86
	if len(text) != characters {
		return sum, false
	}
	value := func(i int) int { return strings.IndexByte(cryptAlphabet, text[i]) }
	put := func(at, n int, octets ...int) bool { // the characters from at are the octets, the last one first
		bits := 0
		for i := n - 1; i >= 0; i-- {
			v := value(at + i)
			if v < 0 {
				return false
			}
			bits = bits<<6 | v
		}
		for _, at := range slices.Backward(octets) {
			sum[at] = byte(bits)
			bits >>= 8
		}
		return bits == 0
	}
	for i := range 21 {
		a, b, c := i, i+21, i+42
		switch i % 3 { // the three rotate
		case 1:
			a, b, c = b, c, a
		case 2:
			a, b, c = c, a, b
		}
		if !put(4*i, 4, a, b, c) {
			return sum, false
		}
	}
	return sum, put(84, 2, 63)
}

// verify implements hashed. The names A, B, DP, P, DS and S are those of the specification.
func (c *sha512Crypt) verify(password []byte) bool {
	salt := []byte(c.salt)
	b := sha512.New()
	b.Write(password)
	b.Write(salt)
	b.Write(password)
	sumB := b.Sum(nil)

	a := sha512.New()
	a.Write(password)
	a.Write(salt)
	a.Write(repeated(sumB, len(password)))
	for n := len(password); n > 0; n >>= 1 {
		if n&1 != 0 {
			a.Write(sumB)
		} else {
			a.Write(password)
		}
	}
	sum := a.Sum(nil)

	dp := sha512.New()
	for range password {
		dp.Write(password)
	}
	p := repeated(dp.Sum(nil), len(password))
	ds := sha512.New()
	for range 16 + int(sum[0]) {
		ds.Write(salt)
	}
	s := repeated(ds.Sum(nil), len(salt))

	h := sha512.New()
	for i := range c.rounds {
		h.Reset()
		writeEither(h, i%2 != 0, p, sum)
		if i%3 != 0 {
			h.Write(s)
		}
		if i%7 != 0 {
			h.Write(p)
		}
		writeEither(h, i%2 != 0, sum, p)
		sum = h.Sum(sum[:0])
	}
	clear(p)
	return subtle.ConstantTimeCompare(sum, c.sum[:]) == 1
}

func writeEither(h hash.Hash, first bool, one, other []byte) {
	if first {
		h.Write(one)
	} else {
		h.Write(other)
	}
}

// repeated returns n octets of sum, again and again.
func repeated(sum []byte, n int) []byte {
	out := make([]byte, 0, n+len(sum))
	for len(out) < n {
		out = append(out, sum...)
	}
	return out[:n]
}

// memory implements hashed.
func (*sha512Crypt) memory() int64 { return 0 }
