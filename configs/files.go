package configs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"postern/proxy"
)

// maxFile bounds, in bytes, the configuration and each file it names.
const maxFile = 1 << 20

// checkFiles checks the files that the configuration names.
func (m *mistakes) checkFiles() {
	m.checkPolicyFiles()
	m.checkTLSFiles()
	m.checkProviderFiles()
	m.checkOthers()
	for name, b := range m.cfg.Backends {
		for _, protocol := range proxy.Protocols() {
			m.checkCA(joinKey("backends", name)+"."+protocol+".ca", b.Server(protocol))
		}
	}
}

// checkOthers checks that the files may be read that are opened after the configuration was
// found to be valid: so one run of check names all that are closed.
func (m *mistakes) checkOthers() {
	files := map[string]string{
		"policy.file": m.cfg.Protocols.File, "passwords.file": m.cfg.Passwords.File, "state.key_file": m.cfg.State.KeyFile,
	}
	for i, r := range m.cfg.Routes {
		files[fmt.Sprintf("routes[%d].file", i)] = r.File
	}
	for name, b := range m.cfg.Backends {
		files[joinKey("backends", name)+".names_file"] = b.NamesFile
	}
	for key, path := range files {
		if info, err := os.Stat(path); path == "" || err == nil && !info.Mode().IsRegular() {
			continue
		}
		f, err := os.Open(path)
		if err == nil {
			_ = f.Close()
		} else if errors.Is(err, fs.ErrPermission) {
			m.report(key, "%s", Unreadable(path, err))
		}
	}
}

func (m *mistakes) checkPair(key string, c Certificate) {
	cert := m.certificates(key+".cert", c.Cert)
	private := m.read(key+".key", c.Key)
	if cert == nil || private == nil {
		return
	}
	if _, err := tls.X509KeyPair(cert, private); err != nil {
		if n := ownerOf(private, cert); n > 1 {
			m.report(key+".cert", "the key %s belongs to certificate %d of %s, which must be the first, with its issuer after it", c.Key, n, c.Cert)
			return
		}
		m.report(key+".key", "%s and %s are no pair: %v", c.Key, c.Cert, err)
	}
}

// ownerOf returns the number, from 1, of the certificate in the PEM file certs to which the
// key belongs; 0: none.
func ownerOf(key, certs []byte) int {
	const most = 20
	for n := 1; n <= most; n++ {
		if _, err := tls.X509KeyPair(certs, key); err == nil {
			return n
		}
		block, rest := pem.Decode(certs)
		for block != nil && block.Type != "CERTIFICATE" {
			block, rest = pem.Decode(rest)
		}
		if block == nil {
			return 0
		}
		certs = rest
	}
	return 0
}

func (m *mistakes) checkCA(key string, s *Server) {
	if s != nil {
		m.certificates(key, s.CA)
	}
}

// certificates reads the file at path, which must contain a certificate; it
// returns nil after a mistake.
func (m *mistakes) certificates(key, path string) []byte {
	data := m.read(key, path)
	if data == nil {
		return nil
	}
	block, rest := pem.Decode(data)
	for block != nil && block.Type != "CERTIFICATE" {
		block, rest = pem.Decode(rest) // a key may stand in the same file
	}
	if block == nil {
		m.report(key, "%s holds no certificate in PEM form", path)
		return nil
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		m.report(key, "%s holds a certificate that cannot be read: %v", path, err)
		return nil
	}
	return data
}

// read returns the content of the file at path; nil if path is empty or after a
// mistake.
func (m *mistakes) read(key, path string) []byte {
	if path == "" {
		return nil
	}
	data, err := readFile(path)
	if err != nil {
		m.report(key, "%s", Unreadable(path, err))
		return nil
	}
	return data
}

// readFile is os.ReadFile for files of at most maxFile bytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return data, err
}
