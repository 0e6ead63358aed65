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

// checkKeys returns an error if no device password was made with a key of state.key_file: it
// is another file than before, and every right password would be called wrong. A state that
// cannot be read says nothing about the keys.
func (g *generation) checkKeys(ctx context.Context) error {
	if g.deviceKeys == nil || g.Storage.Devices == nil {
		return nil
	}
	fit, foreign, err := stored.CountDevices(ctx, g.Storage.Devices, g.deviceKeys)
	switch {
	case err != nil:
		g.log.Warn("it is not known whether state.key_file has the key of the device passwords", "err", err)
	case foreign == 0:
	case fit == 0:
		return configs.Errors{g.cfg.Errorf("state.key_file", "the state has %d device passwords, and none was made with a key of this file: put the key of before into it, as the only line or behind the new one", foreign)}
	default:
		g.log.Warn("device passwords do not work, because state.key_file does not have the key that they were made with", "devices", foreign,
			"remedy", "postern password list shows them with the key -; put that key into the second line, or make the passwords anew")
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
// session that is sending a message ends after it, but for those of a process before an
// upgrade.
func (s *Service) endDevice(ctx context.Context, account, device string) (int, error) {
	all := SessionFilter{Account: account, Device: device}
	idle := all
	idle.Idle = true
	busy := 0
	for _, i := range s.server.Sessions() {
		if i.Busy && all.matches(i) {
			busy++
		}
	}
	n := s.server.Kick(idle.matches)
	if busy > 0 {
		s.wg.Go(func() { s.endBusy(all, idle) })
	}
	before, err := s.askPredecessor(ctx, true, all)
	return n + busy + before.Kicked, err
}

// endBusy ends sessions of all when they become idle, or messageTime is over.
func (s *Service) endBusy(all, idle SessionFilter) {
	const look = 100 * time.Millisecond
	for begun := time.Now(); time.Since(begun) < messageTime && !s.draining.Load(); time.Sleep(look) {
		s.server.Kick(idle.matches)
		left := false
		for _, i := range s.server.Sessions() {
			left = left || all.matches(i)
		}
		if !left {
			return
		}
	}
	s.server.Kick(all.matches)
}
