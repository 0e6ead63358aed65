package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"
)

// A Pair is the paths of two PEM files: a certificate with its chain, and its
// key.
type Pair struct{ Cert, Key string }

// load reads the files of c. A known file keeps its state. That a file has a worse
// certificate than the one that is served is a Finding, and no error.
func (s *Store) load(c Config) (files []*file, folders []*folder, err error) {
	var errs []error
	for _, p := range c.Pairs {
		f := &file{pair: p, source: SourceFile, origin: p.Cert}
		if i := slices.IndexFunc(s.files, func(f *file) bool { return f.pair == p }); i >= 0 {
			f = s.files[i]
		}
		if _, err := f.reload(true); err != nil && !f.worse() {
			errs = append(errs, err)
		}
		files = append(files, f)
	}
	for _, path := range c.Folders {
		f := &folder{path: path}
		if i := slices.IndexFunc(s.folders, func(f *folder) bool { return f.path == path }); i >= 0 {
			f = s.folders[i]
		}
		if err := f.open(); err != nil {
			errs = append(errs, err)
		}
		folders = append(folders, f)
	}
	return files, folders, errors.Join(errs...)
}

// Watch looks for changed files in intervals of every and reloads them, until ctx
// ends. If a file cannot be used, the previous certificate stays. Open sessions
// go on. Watch logs the Findings: all of them at its start and after Configure, then
// those that are new; and those above Info again each day.
func (s *Store) Watch(ctx context.Context, every time.Duration, log *slog.Logger) {
	r := reporter{log: log}
	r.report(ctx, s)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		renewed, err := s.reload()
		for _, cert := range renewed {
			if usable(cert.Leaf, time.Now()) { // else a Finding has the reason
				log.Info("certificate reloaded", "names", names(cert.Leaf), "not_after", cert.Leaf.NotAfter)
			}
		}
		if len(renewed) > 0 || err != nil || r.due(s) {
			r.report(ctx, s)
		}
	}
}

// reload reads the changed files and returns the new certificates, and the errors that
// are new.
func (s *Store) reload() (renewed []*tls.Certificate, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	changed := false
	for _, f := range s.files {
		cert, err := f.reload(false)
		if cert != nil {
			renewed = append(renewed, cert)
		}
		changed = f.takeChange() || changed
		errs = append(errs, err)
	}
	for _, f := range s.folders {
		certs, folderChanged, err := f.reload()
		renewed, changed = append(renewed, certs...), folderChanged || changed
		errs = append(errs, err)
	}
	if changed {
		s.publish()
	}
	return renewed, errors.Join(errs...)
}

// publish makes the loaded certificates the current set.
func (s *Store) publish() {
	var certs []servedCert
	var findings []Finding
	add := func(f *file) {
		if f.err != nil {
			findings = append(findings, f.finding())
		}
		if f.cert != nil {
			certs = append(certs, servedCert{Certificate: f.cert, source: f.source, origin: f.origin, path: f.pair.Cert, faults: f.allFaults()})
		}
	}
	for _, f := range s.files {
		add(f)
	}
	for _, folder := range s.folders {
		for _, f := range folder.files {
			add(f)
		}
		findings = append(findings, folder.findings()...)
	}
	next := newSet(certs, s.config.Default)
	next.refuse, next.findings, next.config = s.config.RefuseUnknown, findings, s.config
	s.current.Store(next)
}

// A file is a Pair and its certificate.
type file struct {
	pair              Pair
	source, origin    string           // of its Findings
	cert              *tls.Certificate // nil: never loaded
	faults            []fault          // of cert
	certInfo, keyInfo os.FileInfo      // when last read
	err               *loadError       // of the last read; nil: none
	changedSince      bool             // since the last takeChange
}

// A loadError is the reason for which a pair was not loaded.
type loadError struct {
	class Class
	err   error
}

func (e *loadError) Error() string { return e.err.Error() }

func (e *loadError) Unwrap() error { return e.err }

// readError adds to an error of permissions what to do.
func readError(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	name, group := strconv.Itoa(os.Geteuid()), strconv.Itoa(os.Getegid())
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return fmt.Errorf("%w: the user %s must be able to read the file and to enter its folders, also those that links lead to "+
		"(chgrp %s, chmod g+rX)", err, name, group)
}

// worse reports whether the pair was not loaded because the certificate that is served is
// better.
func (f *file) worse() bool { return f.err != nil && f.err.class == NotBetter }

// takeChange reports whether what is known of the pair has changed since the last call.
func (f *file) takeChange() bool {
	changed := f.changedSince
	f.changedSince = false
	return changed
}

// finding returns the Finding that the pair was not loaded.
func (f *file) finding() Finding {
	found := Finding{Class: f.err.class, Level: slog.LevelWarn, Source: f.source, Origin: f.origin, Path: f.pair.Cert, Text: shortenError(f.err), notLoaded: true}
	if f.cert != nil {
		found.Names, found.NotAfter = names(f.cert.Leaf), f.cert.Leaf.NotAfter
		found.Text += "; the one before is served, which is valid until " + utc(f.cert.Leaf.NotAfter)
		return found
	}
	if f.source == SourceFile || errors.Is(f.err, fs.ErrPermission) {
		found.Level = slog.LevelError
	}
	return found
}

// allFaults returns the faults of the certificate and of its key's file.
func (f *file) allFaults() []fault {
	const others, groupWrites = 0o007, 0o020
	if f.keyInfo == nil || f.keyInfo.Mode()&(others|groupWrites) == 0 {
		return f.faults
	}
	return append(slices.Clip(f.faults), fault{KeyPermissions, slog.LevelWarn, fmt.Sprintf(
		"its key %s has mode %04o, so that others can read or change it: chmod 0640 %[1]s, with Postern's user as owner or in its group", f.pair.Key, f.keyInfo.Mode().Perm())})
}

// reload reads the pair if it has changed or force is set, and returns the
// certificate if it is a new one. A pair that could not be used is read each
// time, because a change of owner or mode is not seen; its error is returned
// once.
func (f *file) reload(force bool) (*tls.Certificate, error) {
	unchanged := !f.changed() && !force
	if unchanged && f.err == nil {
		return nil, nil
	}
	before := f.err
	cert, err := f.load(time.Now())
	f.err = err
	f.changedSince = f.changedSince || !unchanged || err == nil || before == nil || before.Error() != err.Error()
	if err != nil {
		if unchanged {
			return nil, nil
		}
		return nil, err
	}
	same := f.cert != nil && slices.EqualFunc(cert.Certificate, f.cert.Certificate, slices.Equal[[]byte])
	f.cert, f.faults = cert, judge(cert)
	if same {
		return nil, nil
	}
	return cert, nil
}

// changed reports whether the pair has changed since the last call. A change
// during a read is found by the next call.
func (f *file) changed() bool {
	cert, key := statFile(f.pair.Cert), statFile(f.pair.Key)
	changed := !sameFile(cert, f.certInfo) || !sameFile(key, f.keyInfo) || key != nil && key.Mode() != f.keyInfo.Mode()
	f.certInfo, f.keyInfo = cert, key
	return changed
}

// usable reports whether a certificate is valid at now.
func usable(leaf *x509.Certificate, now time.Time) bool {
	return !now.After(leaf.NotAfter) && !now.Before(leaf.NotBefore)
}

// load reads and checks the pair. X509KeyPair checks that the key belongs to the
// certificate. A certificate that is not valid at now is better than none, but not better
// than a valid one, and an expired one not better than one that ends later.
func (f *file) load(now time.Time) (*tls.Certificate, *loadError) {
	certPEM, err := readPEM(f.pair.Cert)
	if err != nil {
		return nil, &loadError{Unreadable, fmt.Errorf("read certificate: %w", readError(err))}
	}
	keyPEM, err := readPEM(f.pair.Key)
	if err != nil {
		return nil, &loadError{Unreadable, fmt.Errorf("read key of certificate: %w", readError(err))}
	}
	fail := func(class Class, err error) (*tls.Certificate, *loadError) {
		return nil, &loadError{class, fmt.Errorf("certificate %s with key %s: %w", f.pair.Cert, f.pair.Key, err)}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fail(explainPair(certPEM, keyPEM, err))
	}
	if err := fillLeaf(&cert); err != nil {
		return fail(NoSAN, err)
	}
	if f.cert == nil || usable(cert.Leaf, now) {
		return &cert, nil
	}
	served := f.cert.Leaf
	switch expired := now.After(cert.Leaf.NotAfter); {
	case expired && (usable(served, now) || cert.Leaf.NotAfter.Before(served.NotAfter)):
		return fail(NotBetter, fmt.Errorf("expired on %s", utc(cert.Leaf.NotAfter)))
	case !expired && usable(served, now):
		return fail(NotBetter, fmt.Errorf("not valid before %s", utc(cert.Leaf.NotBefore)))
	}
	return &cert, nil
}
