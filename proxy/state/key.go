package state

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// The limits of a file of keys.
const (
	// KeySize is the size in octets of a key, and of what is derived from it.
	KeySize = 32
	// maxKeys is the number of keys in a file: the present one, and the one before.
	maxKeys = 2

	maxKeyFile = 4 << 10 // octets
)

// Keys are the keys of state.key_file, the present one first. The zero value has no key.
// fmt, slog and encoders do not print them.
type Keys struct{ secrets []*[KeySize]byte } // pointers: fmt prints a field of another struct without its methods

// Format implements fmt.Formatter, for every verb.
func (Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// MarshalText implements encoding.TextMarshaler, also for slog.
func (Keys) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// NewKeyCommand returns the shell command that makes a file of keys at path, for root.
func NewKeyCommand(path string) string {
	return fmt.Sprintf("(umask 077; head -c %d /dev/urandom | base64 > %s) && chown postern: %[2]s", KeySize, path)
}

// ReadKeys reads the file of keys at path. It has one line in base64 of KeySize octets
// for each key. While a key is replaced, the new key is in the first line, and the key
// before in the second. The file must not be readable for others, nor writable for its
// group. An error says what to do, and does not contain a key.
func ReadKeys(path string) (Keys, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Keys{}, fmt.Errorf("%s does not exist: make the key with: %s", path, NewKeyCommand(path))
	}
	if err != nil {
		return Keys{}, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return Keys{}, err
	}
	const others, groupWrite = 0o007, 0o020
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return Keys{}, fmt.Errorf("%s is not a regular file", path)
	case mode.Perm()&(others|groupWrite) != 0:
		return Keys{}, fmt.Errorf("%s has mode %04o, and the key must be for Postern alone: chmod o=,g-w %s; if others could read the key, replace it", path, mode.Perm(), path)
	case info.Size() > maxKeyFile:
		return Keys{}, fmt.Errorf("%s is larger than %d bytes: make the key with: %s", path, maxKeyFile, NewKeyCommand(path))
	}
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err != nil {
		return Keys{}, fmt.Errorf("read %s: %w", path, err)
	}
	defer clear(text)
	keys, err := parseKeys(text)
	if err != nil {
		return Keys{}, fmt.Errorf("%s%w", path, err)
	}
	return keys, nil
}

// parseKeys returns the keys in text. The error begins with the number of the line.
func parseKeys(text []byte) (keys Keys, err error) {
	line := 0
	for one := range bytes.Lines(text) {
		line++
		one = bytes.TrimSpace(one)
		if len(one) == 0 {
			continue
		}
		octets := make([]byte, base64.StdEncoding.DecodedLen(len(one)))
		n, err := base64.StdEncoding.Strict().Decode(octets, one)
		octets = octets[:n]
		switch {
		case err != nil: // the error of Decode has an octet's place alone, but says nothing to an operator
			return Keys{}, fmt.Errorf(":%d: the line is not a key: %d octets in base64", line, KeySize)
		case n != KeySize:
			return Keys{}, fmt.Errorf(":%d: the key has %d octets, not %d", line, n, KeySize)
		case len(keys.secrets) == maxKeys:
			return Keys{}, fmt.Errorf(":%d: a third key: the file has the present key, and in the second line the key before", line)
		case len(keys.secrets) > 0 && bytes.Equal(keys.secrets[0][:], octets):
			return Keys{}, fmt.Errorf(":%d: the same key again: write the new key in the first line, and the key before in the second", line)
		case bytes.Count(octets, octets[:1]) == n:
			return Keys{}, fmt.Errorf(":%d: the key is the same octet %d times, not random", line, n)
		}
		keys.secrets = append(keys.secrets, (*[KeySize]byte)(octets))
	}
	if keys.secrets == nil {
		return Keys{}, errors.New(" has no key: it is empty")
	}
	return keys, nil
}

// Derive returns a key of KeySize octets for one use from each key of the file, the
// present one first: HKDF-SHA256, RFC 5869. use is what the key is for, such as
// "devices": two uses never share a key.
func (k Keys) Derive(use string) ([][]byte, error) {
	derived := make([][]byte, 0, len(k.secrets))
	for _, secret := range k.secrets {
		d, err := hkdf.Key(sha256.New, secret[:], nil, "postern "+use, KeySize)
		if err != nil {
			return nil, fmt.Errorf("derive the key of %s: %w", use, err)
		}
		derived = append(derived, d)
	}
	return derived, nil
}
