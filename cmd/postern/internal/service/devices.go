package service

import (
	"context"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/admin"
)

// setKeys reads state.key_file. A reload reads it again.
func (g *generation) setKeys() (err error) {
	if g.deviceKeys, err = stored.ReadDeviceKeys(g.cfg); err != nil {
		return configs.Errors{g.cfg.Errorf("state.key_file", "%v", err)}
	}
	return nil
}

// foreignKeys is what to know about device passwords of a key that state.key_file does not have.
const foreignKeys = "device passwords that do not work, because state.key_file does not have the key that they were made with: %d; " +
	"postern password list shows them with the key -: put that key into the second line of the file, or make them anew"

// checkKeys returns an error if state.key_file is another one than that of the device
// passwords.
func (g *generation) checkKeys(ctx context.Context) error {
	if g.deviceKeys == nil || g.Storage.Devices == nil {
		return nil
	}
	foreign, err := stored.CheckDeviceKeys(ctx, g.Storage.Devices, g.deviceKeys)
	if err != nil {
		return configs.Errors{g.cfg.Errorf("state.key_file", "%v", err)}
	}
	if foreign > 0 {
		w := g.cfg.Errorf("state.key_file", foreignKeys, foreign)
		g.log.Warn("configuration warning", "file", w.File, "line", w.Line, "key", w.Key, "warning", w.Text)
	}
	return nil
}

// answerDevices makes c answer the requests about device passwords.
func (s *Service) answerDevices(c *admin.Server) {
	stored.AddDevice.Register(c, s.Storage)
	stored.ListDevices.Register(c, s.Storage)
	stored.RemoveDevice.Register(c, s.Storage)
}

// messageTime is how long a session of a removed device may take to end the message that
// it is sending.
const messageTime = 5 * time.Minute

// endDevice ends the sessions of a device that was removed, and returns their number. A
// session that is sending a message ends after it.
func (s *Service) endDevice(ctx context.Context, account, device string) (int, error) {
	return s.endSessions(ctx, SessionFilter{Account: account, Device: device})
}
