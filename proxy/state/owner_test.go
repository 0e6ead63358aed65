package state

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Criterion: The owner of a record answers who has the key of state.key_file, the present one or the one before, and nobody else; who asks takes no other owner; other buckets than the shared ones are refused.
func TestTheOwnerAnswersWhoHasTheKey(t *testing.T) {
	b := newBolt(t)
	if err := b.Bucket("guard").Put(t.Context(), "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	address := serveRecord(t, b, testKeys(t, 1))
	ask := func(octet ...byte) (*Owner, error) {
		o, err := NewOwner(address, testKeys(t, octet...), nil)
		if err != nil {
			t.Fatal(err)
		}
		return o, o.Probe(t.Context())
	}
	o, err := ask(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(2); err == nil || !strings.Contains(err.Error(), errForeign.Error()) && !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another key: %v", err)
	}
	if _, err := ask(2, 1); err == nil { // its first line is not the owner's: the owner learns the new one in its second line first
		t.Error("a new key that the owner does not have yet was answered")
	}
	if _, err := o.Get(t.Context(), "guard", []string{"a"}); err == nil || !strings.Contains(err.Error(), "not for other nodes") {
		t.Errorf("another bucket: %v", err)
	}
	if _, err := o.Swap(t.Context(), MetaBucket, []Change{{Key: IdentityKey, Value: []byte("x")}}); err == nil {
		t.Error("the name of the record was changed by another node")
	}
	rotated := serveRecord(t, b, testKeys(t, 1, 3))
	if o, err = NewOwner(rotated, testKeys(t, 3, 1), nil); err != nil {
		t.Fatal(err)
	}
	if err := o.Probe(t.Context()); err != nil {
		t.Errorf("while the key is replaced: %v", err)
	}
	if answer, err := http.Get("http://" + address + "/get"); err == nil {
		_ = answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			t.Error("answered without TLS")
		}
	}
}

// An answer that was cut off says nothing: what is missing in it may be there.
func TestAnAnswerOfTheOwnerThatIsCutOffIsAnError(t *testing.T) {
	keys := testKeys(t, 1)
	config, err := nodeTLS(keys)
	if err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]string{
		"nothing": "", "half a line": `{"Values":[{"value":"eA==","ver`, "no end": `{"Key":"YQ==","Value":"eA=="}` + "\n",
		"of another record": "other", "an error": `{"Error":"disk full"}` + "\n", "not JSON": "<html>",
	} {
		t.Run(name, func(t *testing.T) {
			s := &http.Server{TLSConfig: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				record := "one"
				if answer == "other" {
					record = "two"
				}
				w.Header().Set(identityField, record)
				_, _ = io.WriteString(w, strings.TrimPrefix(answer, "other"))
			})}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = s.ServeTLS(ln, "", "") }()
			defer func() { _ = s.Close() }()
			o, err := NewOwner(ln.Addr().String(), keys, func(i Identity) error {
				if i.Name != "one" {
					return errors.New("another record")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			err = o.Scan(t.Context(), "uidl", "", func(string, []byte) error { n++; return nil })
			if err == nil {
				t.Errorf("a scan is whole after %d values", n)
			}
			if values, err := o.Get(context.Background(), "uidl", []string{"a"}); err == nil {
				t.Errorf("there is %v", values)
			}
		})
	}
}
