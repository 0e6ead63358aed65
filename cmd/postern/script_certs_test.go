package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// writeFaultyPair is the command pair KIND CERT KEY of the scripts: it writes a certificate
// of mail.example.org with one fault, and its key. The kinds are those of the switches.
func writeFaultyPair(ts *testscript.TestScript, _ bool, args []string) {
	kind := args[0]
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Script CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	root := *ca
	root.Subject.CommonName = "Script Root"
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "mail.example.org"}, DNSNames: []string{"mail.example.org"},
		NotBefore: now.AddDate(0, 0, -30), NotAfter: now.AddDate(0, 0, 60),
	}
	mode := os.FileMode(0o600)
	switch kind {
	case "expired":
		leaf.NotAfter = now.AddDate(0, 0, -1)
	case "early":
		leaf.NotBefore = now.AddDate(0, 0, 1)
	case "soon":
		leaf.NotAfter = now.AddDate(0, 0, 5)
	case "cn":
		leaf.DNSNames = nil
	case "open":
		mode = 0o644
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		return key
	}
	caKey, rootKey := newKey(), newKey()
	var key crypto.Signer = newKey()
	if kind == "weak" {
		short, err := rsa.GenerateKey(rand.Reader, 1024)
		ts.Check(err)
		key = short
	}
	sign := func(c, issuer *x509.Certificate, public crypto.PublicKey, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, issuer, public, by)
		ts.Check(err)
		return der
	}
	rootDER, caDER, leafDER := sign(&root, &root, rootKey.Public(), rootKey), sign(ca, &root, caKey.Public(), rootKey), []byte(nil)
	if kind == "self-signed" {
		own := key.(*ecdsa.PrivateKey)
		leafDER = sign(leaf, leaf, own.Public(), own)
	} else {
		leafDER = sign(leaf, ca, key.Public(), caKey)
	}
	chain := [][]byte{leafDER, caDER}
	switch kind {
	case "leaf-only":
		chain = chain[:1]
	case "leaf-last":
		slices.Reverse(chain)
	case "order":
		chain = [][]byte{leafDER, rootDER, caDER}
	case "mismatch":
		key = newKey()
	}
	var text []byte
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for i, b := range [][]byte{text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		path := ts.MkAbs(args[1+i])
		ts.Check(os.MkdirAll(filepath.Dir(path), 0o755))
		ts.Check(os.WriteFile(path+".new", b, mode))
		ts.Check(os.Chmod(path+".new", mode))
		ts.Check(os.Rename(path+".new", path))
	}
}
