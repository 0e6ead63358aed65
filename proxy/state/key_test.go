package state

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keyLine returns the line of a key whose octets are n, n+1, ...
func keyLine(n byte) string {
	octets := make([]byte, KeySize)
	for i := range octets {
		octets[i] = n + byte(i)
	}
	return base64.StdEncoding.EncodeToString(octets) + "\n"
}

func writeKeys(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// Criterion: A key file that is missing, cut off, readable for others or has more than two keys is refused with the line and what to do, and no message has a key.
func TestKeyFilesWithFaultsAreRefused(t *testing.T) {
	short := base64.StdEncoding.EncodeToString([]byte("sixteen octets..")) + "\n"
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		want       string
	}{
		{"empty", "", 0o600, "has no key"},
		{"blank", "\n \n", 0o600, "has no key"},
		{"no base64", "a secret that somebody typed\n", 0o600, ":1: the line is not a key: 32 octets in base64"},
		{"half", keyLine(1)[:20] + "\n", 0o600, ":1: "},
		{"short", short, 0o600, ":1: the key has 16 octets, not 32"},
		{"zeros", base64.StdEncoding.EncodeToString(make([]byte, KeySize)), 0o600, ":1: the key is the same octet"},
		{"second line wrong", keyLine(1) + short, 0o600, ":2: the key has 16 octets"},
		{"twice", keyLine(1) + keyLine(1), 0o600, ":2: the same key again"},
		{"three", keyLine(1) + keyLine(2) + keyLine(3), 0o600, ":3: a third key"},
		{"large", strings.Repeat("\n", maxKeyFile+1), 0o600, "is larger than"},
		{"for all to read", keyLine(1), 0o644, "has mode 0644"},
		{"for the group to write", keyLine(1), 0o660, "has mode 0660"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadKeys(writeKeys(t, c.text, c.mode))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("ReadKeys = %v, want %q", err, c.want)
			}
			for line := range strings.Lines(c.text) {
				if line = strings.TrimSpace(line); line != "" && strings.Contains(err.Error(), line) {
					t.Error("the message has the line")
				}
			}
		})
	}
	if _, err := ReadKeys(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("ReadKeys of a folder = %v", err)
	}
	missing := filepath.Join(t.TempDir(), "state.key")
	if _, err := ReadKeys(missing); err == nil || !strings.Contains(err.Error(), NewKeyCommand(missing)) {
		t.Errorf("ReadKeys of no file = %v, want the command that makes one", err)
	}
}

func TestEachUseAndEachKeyHasAKeyOfItsOwn(t *testing.T) {
	before, err := ReadKeys(writeKeys(t, keyLine(1), 0o640))
	if err != nil {
		t.Fatal(err)
	}
	both, err := ReadKeys(writeKeys(t, keyLine(2)+"\n"+keyLine(1), 0o400))
	if err != nil {
		t.Fatal(err)
	}
	old, err := before.Derive("devices")
	if err != nil {
		t.Fatal(err)
	}
	now, err := both.Derive("devices")
	if err != nil {
		t.Fatal(err)
	}
	if len(old) != 1 || len(now) != 2 || bytes.Equal(now[0], now[1]) || !bytes.Equal(now[1], old[0]) {
		t.Error("the second line does not give the key that the first line gave before")
	}
	// What is stored depends on these octets: they are the same in all versions.
	if got, want := hex.EncodeToString(old[0]), "fdde6315"; !strings.HasPrefix(got, want) {
		t.Errorf("the key of devices begins with %.8s, want %s", got, want)
	}
	other, err := both.Derive("tokens")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(other[0], now[0]) {
		t.Error("two uses share a key")
	}
	type holder struct{ keys Keys }
	printed, err := json.Marshal(both)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %x", both, both, both, both, both), fmt.Sprintf("%v %+v %#v %x", holder{both}, &holder{both}, holder{both}, holder{both}), string(printed)} {
		if strings.Contains(text, "2 3 4") || strings.Contains(text, "0x3, ") || strings.Contains(text, "020304") {
			t.Errorf("a key is printed: %s", text)
		}
	}
}
