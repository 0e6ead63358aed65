package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// The files of each name in a folder, as certbot calls them.
const (
	folderCert = "fullchain.pem"
	folderKey  = "privkey.pem"
)

// settled is how long a folder must not have changed for its time to be
// believed: file systems count in steps.
const settled = 2 * time.Second

// A folder holds a pair for each name, in a subfolder. There may be thousands.
type folder struct {
	path  string
	info  os.FileInfo // when last listed; nil: list again
	files []*file     // by path
}

// open reads all pairs. What is wrong with one of them is left for reload to
// tell.
func (f *folder) open() error {
	if _, err := f.list(true); err != nil {
		return err
	}
	for _, pair := range f.files {
		if _, err := pair.reload(true); err != nil {
			pair.certInfo, pair.keyInfo = nil, nil
		}
	}
	return nil
}

// reload reads again what has changed, and returns the certificates that are
// new, and whether there are some less. It costs a look at each certificate, and
// at the key of those that changed; the folder itself is listed only when it has
// changed.
func (f *folder) reload() (renewed []*tls.Certificate, less bool, err error) {
	less, err = f.list(false)
	errs := []error{err}
	for _, pair := range f.files {
		if !pair.bad && same(stat(pair.pair.Cert), pair.certInfo) {
			continue
		}
		cert, err := pair.reload(false)
		if cert != nil {
			renewed = append(renewed, cert)
		}
		errs = append(errs, err)
	}
	return renewed, less, errors.Join(errs...)
}

// list brings files up to date with the subfolders, and reports whether some
// are gone. Subfolders without a certificate, such as those not yet filled, are
// looked at again each time. That all are gone is believed only when told to
// look: more likely what was mounted there is away.
func (f *folder) list(must bool) (less bool, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return false, fmt.Errorf("folder of certificates: %w", err)
	}
	if f.info != nil && same(info, f.info) {
		return false, nil
	}
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return false, fmt.Errorf("folder of certificates: %w", err)
	}
	known := make(map[string]*file, len(f.files))
	for _, file := range f.files {
		known[file.pair.Cert] = file
	}
	var files []*file
	complete := true
	for _, e := range entries {
		cert := filepath.Join(f.path, e.Name(), folderCert)
		one := known[cert]
		if one == nil {
			if stat(cert) == nil {
				complete = complete && !e.IsDir()
				continue
			}
			one = &file{pair: Pair{Cert: cert, Key: filepath.Join(f.path, e.Name(), folderKey)}}
		}
		delete(known, cert)
		files = append(files, one)
	}
	f.info = nil
	if complete && time.Since(info.ModTime()) > settled {
		f.info = info
	}
	if len(files) == 0 && len(f.files) > 0 && !must {
		return false, fmt.Errorf("folder of certificates: %s has none any more", f.path)
	}
	f.files = files
	return len(known) > 0, nil
}
