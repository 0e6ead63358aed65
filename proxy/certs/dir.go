package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// The files of each name in a folder, as certbot names them.
const (
	folderCert = "fullchain.pem"
	folderKey  = "privkey.pem"
)

// settleTime is how old the change of a folder must be for its modification time
// to be trusted: file systems round it.
const settleTime = 2 * time.Second

// A folder holds a pair for each name, in a subfolder. There may be thousands.
type folder struct {
	path  string
	info  os.FileInfo // when last listed; nil: list it again
	files []*file     // by path
}

// open reads all pairs. reload reports errors of single pairs.
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

// reload reads changed pairs. It returns the new certificates, and whether pairs
// were removed. It stats each certificate, and the keys of those that changed;
// the folder is listed only when it has changed.
func (f *folder) reload() (renewed []*tls.Certificate, removed bool, err error) {
	removed, err = f.list(false)
	errs := []error{err}
	for _, pair := range f.files {
		if !pair.failed && sameFile(statFile(pair.pair.Cert), pair.certInfo) {
			continue
		}
		cert, err := pair.reload(false)
		if cert != nil {
			renewed = append(renewed, cert)
		}
		errs = append(errs, err)
	}
	return renewed, removed, errors.Join(errs...)
}

// list updates files from the subfolders, and reports whether pairs were removed.
// Subfolders without a certificate, such as those not yet filled, are looked at
// again each time. That all pairs are gone is believed only with force: the file
// system is probably not mounted.
func (f *folder) list(force bool) (removed bool, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return false, fmt.Errorf("folder of certificates: %w", err)
	}
	if f.info != nil && sameFile(info, f.info) {
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
			if statFile(cert) == nil {
				complete = complete && !e.IsDir()
				continue
			}
			one = &file{pair: Pair{Cert: cert, Key: filepath.Join(f.path, e.Name(), folderKey)}}
		}
		delete(known, cert)
		files = append(files, one)
	}
	f.info = nil
	if complete && time.Since(info.ModTime()) > settleTime {
		f.info = info
	}
	if len(files) == 0 && len(f.files) > 0 && !force {
		return false, fmt.Errorf("folder of certificates: %s has none any more", f.path)
	}
	f.files = files
	return len(known) > 0, nil
}
