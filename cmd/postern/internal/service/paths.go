package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"postern/cmd/postern/internal/stored"
	"postern/cmd/postern/internal/unit"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/certs"
	"postern/proxy/state"
)

// checkPaths returns the mistakes and the warnings about the files that a start reads, opens
// or makes. It changes nothing. check and run both call it, so that they agree. u is the unit
// under which the service will run; nil: the paths are judged as this process sees them.
func (g *generation) checkPaths(u *unit.Unit) (mistakes, warnings configs.Errors) {
	c := pathChecker{cfg: g.cfg, unit: u}
	c.checkReadable()
	c.checkState()
	c.checkControl(g.gid)
	c.checkFailures()
	c.checkStorage()
	return c.mistakes, c.warnings
}

// A pathChecker collects what checkPaths returns.
type pathChecker struct {
	cfg                *configs.Config
	unit               *unit.Unit
	mistakes, warnings configs.Errors
}

func (c *pathChecker) mistake(key string, err error) {
	if err != nil {
		c.mistakes = append(c.mistakes, c.cfg.Errorf(key, "%v", err))
	}
}

// checkReadable finds files that the unit hides. What this process cannot read, configs.Load
// reports.
func (c *pathChecker) checkReadable() {
	read := func(key, path string) {
		if path != "" {
			c.mistake(key, c.unit.CheckRead(path))
		}
	}
	for i, pair := range c.cfg.TLS.Certificates {
		key := fmt.Sprintf("tls.certificates[%d].", i)
		read(key+"cert", pair.Cert)
		read(key+"key", pair.Key)
		read(key+"dir", pair.Dir)
	}
	for name, b := range c.cfg.Backends {
		for _, protocol := range proxy.Protocols() {
			if server := b.Server(protocol); server != nil {
				read("backends."+name+"."+protocol+".ca", server.CA)
			}
		}
	}
	for name, b := range c.cfg.Backends {
		read("backends."+name+".names_file", b.NamesFile)
	}
	for name, p := range c.cfg.Providers {
		key := "providers." + name + "."
		read(key+"ca", p.CA)
		read(key+"client_secret_file", p.ClientSecretFile)
		read(key+"key_file", p.KeyFile)
		if p.Certificate != nil {
			read(key+"certificate.cert", p.Certificate.Cert)
			read(key+"certificate.key", p.Certificate.Key)
		}
	}
	for i, r := range c.cfg.Routes {
		read(fmt.Sprintf("routes[%d].file", i), r.File)
	}
	read("policy.file", c.cfg.Protocols.File)
	read("state.key_file", c.cfg.State.KeyFile)
	if r := c.cfg.State.Record; r != nil && r.Postgres != nil {
		read("state.record.postgres.password_file", r.Postgres.PasswordFile)
		read("state.record.postgres.ca", r.Postgres.CA)
	}
	read("passwords.file", c.cfg.Passwords.File)
}

// belongsToService reports whether systemd will make dir the service's own at the start.
func (c *pathChecker) belongsToService(dir string) bool {
	if !c.unit.Makes(dir) {
		return false
	}
	info, err := os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() && !state.IsOwn(info)
}

func (c *pathChecker) checkState() {
	const key = "state.path"
	dir := c.cfg.State.Path
	if dir == "" || c.belongsToService(dir) {
		return
	}
	if err := c.unit.CheckWriteIn(dir); err != nil {
		c.mistake(key, err)
		return
	}
	foreign, err := stored.CheckDeviceKeysOf(context.Background(), c.cfg)
	c.mistake("state.key_file", err)
	if err == nil && foreign > 0 {
		c.warnings = append(c.warnings, c.cfg.Errorf("state.key_file", foreignKeys, foreign))
	}
	warning, err := stored.CheckStart(c.cfg)
	c.mistake(key, err)
	if warning != nil {
		c.warnings = append(c.warnings, c.cfg.Errorf(key, "%v", warning))
	}
}

func (c *pathChecker) checkControl(gid int) {
	key, path := "control.socket", c.cfg.Control.Socket
	dir := filepath.Dir(path)
	if path == "" || dir == filepath.Clean(c.cfg.State.Path) && !c.cfg.IsSet(key) {
		return // it is off, or in the directory that checkState has checked
	}
	err := c.unit.CheckWrite(path)
	if err == nil {
		err = admin.CheckPath(path, gid)
	}
	if err == nil && !c.belongsToService(dir) {
		if err = state.CheckDir(dir); err != nil {
			err = fmt.Errorf("control socket %s: %w", path, err)
		}
	}
	c.mistake(key, err)
	c.warnPrivate(key, path, "no command finds this socket")
}

func (c *pathChecker) checkFailures() {
	const key = "log.fail2ban"
	path := c.cfg.Log.Fail2ban
	if path == "" {
		return
	}
	err := c.unit.CheckWrite(path)
	if err == nil && !c.belongsToService(filepath.Dir(path)) {
		if err = state.CheckAppend(path); errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: make the directory %s, in which Postern's user can write", err, filepath.Dir(path))
		}
	}
	c.mistake(key, err)
	c.warnPrivate(key, path, "fail2ban does not see this file")
}

func (c *pathChecker) checkStorage() {
	const key = "tls.acme.storage"
	a := c.cfg.TLS.ACME
	if a == nil || c.belongsToService(a.Storage) {
		return
	}
	err := c.unit.CheckWriteIn(a.Storage)
	if err == nil {
		err = certs.CheckStorage(a.Storage, os.Geteuid())
	}
	if err == nil && !c.belongsToService(filepath.Dir(a.Storage)) {
		err = state.CheckDir(a.Storage)
	}
	c.mistake(key, err)
}

// warnPrivate warns of a path that the service has for itself alone.
func (c *pathChecker) warnPrivate(key, path, consequence string) {
	if c.unit.Private(path) {
		c.warnings = append(c.warnings, c.cfg.Errorf(key, "%s is in a directory that the service has for itself alone (PrivateTmp in %s): %s", path, c.unit.Path, consequence))
	}
}
