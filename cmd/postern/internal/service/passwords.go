package service

import (
	"context"
	"errors"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/password"
)

// A passwordStores is what checks the passwords of accounts at backends that Postern logs
// in to with credentials of its own.
type passwordStores struct {
	check   password.Checks
	devices *password.Devices // nil: device passwords are not asked
	file    *password.File    // nil: there is none
}

// setPasswords opens the stores of passwords. b has the backend that verifies.
func (g *generation) setPasswords(b backends) error {
	c := g.cfg.Passwords
	add := func(name string, check password.Check) {
		g.passwords.check = append(g.passwords.check, password.Store{Asked: check, Name: name, Observer: g.observer})
	}
	if c.Devices {
		g.passwords.devices = &password.Devices{Bucket: storedDevices{g.Service}, Keys: g.deviceKeys}
		add(proxy.StoreDevices, g.passwords.devices)
	}
	if c.File != "" {
		file, err := password.OpenFile(c.File, g.slow)
		if err != nil {
			return passwordMistakes(g.cfg, c.File, err)
		}
		file.CaseCounts = !g.cfg.Accounts.Lowercase
		g.passwords.file = file
		add(proxy.StoreFile, file)
		// A change counts within two looks.
		g.background = append(g.background, func(ctx context.Context) { file.Watch(ctx, watchEvery/2, g.log) })
	}
	if c.Backend != "" {
		add(proxy.StoreBackend, password.Verify(backend.Verify(b.imap[c.Backend])))
	}
	return nil
}

// passwordMistakes returns err as mistakes of the configuration: one for each wrong line of
// the file at path.
func passwordMistakes(cfg *configs.Config, path string, err error) (mistakes configs.Errors) {
	const key = "passwords.file"
	lines, ok := errors.AsType[password.Mistakes](err)
	if !ok {
		return configs.Errors{cfg.Errorf(key, "%s", configs.Unreadable(path, err))}
	}
	for _, line := range lines {
		mistakes = append(mistakes, cfg.Errorf(key, "%v", line))
	}
	return mistakes
}

// withPasswords returns a backend that checks the client's password before next logs in
// with credentials of Postern's own. serves reports whether next may log an account in.
func (g *generation) withPasswords(next proxy.Backend, serves func(account string) bool) *password.Backend {
	return &password.Backend{Serves: serves, Check: g.passwords.check, Devices: g.passwords.devices, Next: next}
}

// storedDevices are the device passwords in the state, which is open before the first
// login, but after the first generation is built.
type storedDevices struct{ *Service }

func (s storedDevices) Get(ctx context.Context, key string) ([]byte, error) {
	return s.Storage.Devices.Get(ctx, key)
}

func (s storedDevices) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	return s.Storage.Devices.Update(ctx, key, change)
}

func (s storedDevices) Scan(ctx context.Context, prefix string, each func(string, []byte) error) error {
	return s.Storage.Devices.Scan(ctx, prefix, each)
}
