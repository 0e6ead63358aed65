package service

import (
	"context"
	"net"
	"strconv"

	"postern/configs"
	"postern/proxy/admin"

	osuser "os/user"
)

// setControl looks up the group that may use the control socket.
func (g *generation) setControl() error {
	g.gid = -1
	name := g.cfg.Control.Group
	if name == "" {
		return nil
	}
	group, err := osuser.LookupGroup(name)
	if err == nil {
		g.gid, err = strconv.Atoi(group.Gid)
	}
	if err != nil {
		return configs.Errors{g.cfg.Errorf("control.group", "%v", err)}
	}
	return nil
}

// openControl opens the control socket, if one is configured.
func (s *Service) openControl(g *generation) (err error) {
	if path := g.cfg.Control.Socket; path != "" {
		s.controlListener, err = admin.Listen(path, g.gid)
	}
	return err
}

// serveControl answers requests until ctx ends, which is after the last session.
func (s *Service) serveControl(ctx context.Context, asking net.Listener) {
	if err := s.control.Serve(ctx, asking); err != nil {
		s.log.Error("commands are not answered", "err", err)
	}
}
