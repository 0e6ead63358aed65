package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	path    string
	info    os.FileInfo // when last listed; nil: list it again
	files   []*file     // by path
	ignored []fault     // of entries that have no pair
	err     error       // of the last listing; nil: none
}

// open reads all pairs. reload reports errors of single pairs.
func (f *folder) open() error {
	if _, f.err = f.list(true); f.err != nil {
		return f.err
	}
	for _, pair := range f.files {
		if _, err := pair.reload(true); err != nil {
			pair.certInfo, pair.keyInfo = nil, nil
		}
	}
	return nil
}

// reload reads changed pairs. It returns the new certificates, and whether anything of
// the folder has changed. It stats each certificate, and the keys of those that changed;
// the folder is listed only when it has changed.
func (f *folder) reload() (renewed []*tls.Certificate, changed bool, err error) {
	ignored, before := f.ignored, f.err
	changed, f.err = f.list(false)
	changed = changed || !slices.Equal(f.ignored, ignored) || (f.err == nil) != (before == nil)
	errs := []error{f.err}
	for _, pair := range f.files {
		if pair.err == nil && sameFile(statFile(pair.pair.Cert), pair.certInfo) {
			continue
		}
		cert, err := pair.reload(false)
		if cert != nil {
			renewed = append(renewed, cert)
		}
		changed = pair.takeChange() || changed
		errs = append(errs, err)
	}
	return renewed, changed, errors.Join(errs...)
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
	var ignored []fault
	complete := true
	for _, e := range entries {
		cert := filepath.Join(f.path, e.Name(), folderCert)
		one := known[cert]
		if one == nil {
			if statFile(cert) == nil {
				complete = complete && !e.IsDir()
				if len(ignored) < maxIgnored {
					ignored = append(ignored, f.judgeEntry(e)...)
				}
				continue
			}
			one = &file{pair: Pair{Cert: cert, Key: filepath.Join(f.path, e.Name(), folderKey)}, source: SourceFolder, origin: f.path}
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
	f.files, f.ignored = files, ignored
	return len(known) > 0, nil
}

// maxIgnored bounds the entries of a folder whose layout is judged.
const maxIgnored = 100

// layout is what a folder has to look like.
const layout = "Postern reads NAME/" + folderCert + " (the certificate, then its chain) and NAME/" + folderKey

// judgeEntry returns what is wrong with an entry of the folder that has no pair: a pair that
// cannot be reached, or files that look like a pair with other names. An empty subfolder may
// be filled later.
func (f *folder) judgeEntry(e os.DirEntry) []fault {
	path := filepath.Join(f.path, e.Name())
	wrong := func(format string, args ...any) []fault {
		return []fault{{FolderLayout, slog.LevelWarn, path + fmt.Sprintf(format, args...)}}
	}
	if e.Type().IsRegular() {
		if !looksLikePEM(e.Name()) {
			return nil
		}
		return wrong(" is ignored, because it is in no subfolder: %s; if NAME is this folder, dir is the folder above", layout)
	}
	cert := filepath.Join(path, folderCert)
	if _, err := os.Stat(cert); errors.Is(err, fs.ErrPermission) {
		return []fault{{Unreadable, slog.LevelError, shortenError(readError(err))}}
	}
	entries, err := os.ReadDir(path) // also of what a link leads to
	if err != nil {
		return nil // no folder
	}
	var found []string
	for _, e := range entries {
		if e.Name() == folderCert {
			return wrong(" is ignored: its %s leads to a file that does not exist", folderCert)
		}
		if looksLikePEM(e.Name()) && len(found) < 5 {
			found = append(found, e.Name())
		}
	}
	if found == nil {
		return nil
	}
	return wrong(" is ignored: it has %s and no %s: %s, so rename or link the files", strings.Join(found, ", "), folderCert, layout)
}

// looksLikePEM reports whether a file has the name of a certificate or key.
func looksLikePEM(name string) bool {
	return slices.Contains([]string{".pem", ".crt", ".cer", ".cert", ".key"}, strings.ToLower(filepath.Ext(name)))
}

// findings returns what is wrong with the folder itself.
func (f *folder) findings() (all []Finding) {
	add := func(found fault) {
		all = append(all, Finding{Class: found.class, Level: found.level, Source: SourceFolder, Origin: f.path, Path: f.path, Text: found.text})
	}
	if f.err != nil {
		add(fault{Unreadable, slog.LevelWarn, shortenError(f.err)})
	}
	for _, found := range f.ignored {
		add(found)
	}
	if f.err == nil && len(f.ignored) == 0 && len(f.files) == 0 {
		add(fault{FolderLayout, slog.LevelWarn, f.path + " has no certificate: " + layout})
	}
	return all
}
