package state

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"time"
)

// The owner of a record answers other nodes over TLS 1.3. Both sides have a certificate of
// an Ed25519 key that is derived from state.key_file, and take no other: who has the key is a
// node. The requests are those of Store, as HTTP with JSON: POST /get, /swap, /scan. Each
// answer names the record, and ends with the line that says so: one that was cut off is an
// error.

const (
	ownerUse      = "record"        // of state.key_file
	ownerName     = "postern.owner" // in the certificates; nobody resolves it
	identityField = "Postern-Record"
	ownerConns    = 4         // listen.Limited takes 16 from one address, and 32 in all
	maxAnswer     = 256 << 20 // octets of an answer to get and swap
	certLife      = 100 * 365 * 24 * time.Hour
)

// nodeTLS returns the tls.Config of a node with keys, for both sides.
func nodeTLS(keys Keys) (*tls.Config, error) {
	seeds, err := keys.Derive(ownerUse)
	if err != nil {
		return nil, err
	}
	if len(seeds) == 0 {
		return nil, errors.New("there is no key")
	}
	var known []ed25519.PublicKey
	var own tls.Certificate
	for i, seed := range seeds {
		key := ed25519.NewKeyFromSeed(seed)
		public, _ := key.Public().(ed25519.PublicKey)
		known = append(known, public)
		if i > 0 {
			continue // the key of before is taken, and not shown
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: ownerName}, DNSNames: []string{ownerName},
			NotBefore: time.Unix(0, 0), NotAfter: time.Unix(0, 0).Add(certLife),
		}
		der, err := x509.CreateCertificate(nil, template, template, public, key)
		if err != nil {
			return nil, fmt.Errorf("certificate of this node: %w", err)
		}
		own = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13, ServerName: ownerName,
		ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify:     true, // no CA: VerifyConnection compares the key itself
		SessionTicketsDisabled: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) == 0 {
				return errForeign
			}
			public, ok := c.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
			if !ok || !slices.ContainsFunc(known, func(k ed25519.PublicKey) bool { return k.Equal(public) }) {
				return errForeign
			}
			return nil
		},
	}, nil
}

var errForeign = errors.New("the other side has not the key of state.key_file")

// An Owner is a Store at the node that keeps the record.
type Owner struct {
	address string
	accept  func(Identity) error
	client  *http.Client
}

// NewOwner returns the Store of the node that serves its record at address, host:port, to who
// has keys. accept is as in PostgresConfig. NewOwner connects to nothing.
func NewOwner(address string, keys Keys, accept func(Identity) error) (*Owner, error) {
	config, err := nodeTLS(keys)
	if err != nil {
		return nil, err
	}
	if accept == nil {
		accept = Identity.Check
	}
	transport := &http.Transport{
		TLSClientConfig: config, DialContext: (&net.Dialer{Timeout: probeTimeout}).DialContext, TLSHandshakeTimeout: probeTimeout,
		MaxConnsPerHost: ownerConns, MaxIdleConnsPerHost: ownerConns, IdleConnTimeout: time.Minute, DisableCompression: true,
	}
	return &Owner{address, accept, &http.Client{
		Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// A ownerRequest is the argument of every request.
type ownerRequest struct {
	Bucket  string
	Keys    [][]byte      `json:",omitempty"`
	Prefix  []byte        `json:",omitempty"`
	Changes []ownerChange `json:",omitempty"`
}

type ownerChange struct {
	Key     []byte // as octets: JSON would change what is not UTF-8
	Version int64
	Value   []byte // null removes
}

// An ownerAnswer is one line of an answer. The last line has End.
type ownerAnswer struct {
	Values  []Versioned `json:",omitempty"`
	Swapped bool        `json:",omitempty"`
	Key     []byte      `json:",omitempty"`
	Value   []byte      // null: none
	End     bool        `json:",omitempty"`
	Error   string      `json:",omitempty"`
}

// ask sends a request, and calls each for every line of the answer but the last.
func (o *Owner) ask(ctx context.Context, path string, in ownerRequest, bound int64, each func(ownerAnswer) error) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+o.address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.GetBody = nil // a request that may have arrived is not sent again
	answer, err := o.client.Do(r)
	if err != nil {
		return fmt.Errorf("owner of the record at %s: %w", o.address, errors.Unwrap(err))
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		return fmt.Errorf("owner of the record at %s: %s: %s", o.address, answer.Status, printable(bytes.TrimSpace(text)))
	}
	if err := o.accept(Identity{Name: answer.Header.Get(identityField)}); err != nil {
		return fmt.Errorf("owner of the record at %s: %w", o.address, err)
	}
	from := io.Reader(answer.Body)
	if bound > 0 {
		from = io.LimitReader(from, bound)
	}
	for lines := json.NewDecoder(from); ; {
		var line ownerAnswer
		if err := lines.Decode(&line); err != nil {
			return fmt.Errorf("owner of the record at %s: the answer was cut off: %w", o.address, err)
		}
		switch {
		case line.Error != "":
			return fmt.Errorf("owner of the record at %s: %s", o.address, printable([]byte(line.Error)))
		case line.End:
			return nil
		}
		if err := each(line); err != nil {
			return err
		}
	}
}

// Get implements Store.
func (o *Owner) Get(ctx context.Context, bucket string, keys []string) (values []Versioned, err error) {
	err = o.ask(ctx, "/get", ownerRequest{Bucket: bucket, Keys: octets(keys)}, maxAnswer, func(a ownerAnswer) error {
		values = a.Values
		return nil
	})
	return values, err
}

// Swap implements Store.
func (o *Owner) Swap(ctx context.Context, bucket string, changes []Change) (swapped bool, err error) {
	in := ownerRequest{Bucket: bucket}
	for _, c := range changes {
		in.Changes = append(in.Changes, ownerChange{[]byte(c.Key), c.Version, c.Value})
	}
	err = o.ask(ctx, "/swap", in, maxAnswer, func(a ownerAnswer) error {
		swapped = a.Swapped
		return nil
	})
	return swapped && err == nil, err
}

// Scan implements Store.
func (o *Owner) Scan(ctx context.Context, bucket, prefix string, each func(key string, value []byte) error) error {
	return o.ask(ctx, "/scan", ownerRequest{Bucket: bucket, Prefix: []byte(prefix)}, 0, func(a ownerAnswer) error {
		return each(string(a.Key), a.Value)
	})
}

// Probe implements Store.
func (o *Owner) Probe(ctx context.Context) error {
	o.client.CloseIdleConnections()
	return o.ask(ctx, "/get", ownerRequest{Bucket: MetaBucket, Keys: octets([]string{IdentityKey})}, maxAnswer, func(ownerAnswer) error { return nil })
}

// Close implements Store.
func (o *Owner) Close() error {
	o.client.CloseIdleConnections()
	return nil
}
