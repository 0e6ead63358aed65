package service

import (
	"context"
	"net"
	"strconv"

	"postern/configs"
	"postern/proxy/admin"

	osuser "os/user"
)

// setControl finds out who may ask.
func (h *generation) setControl() error {
	h.gid = -1
	name := h.cfg.Control.Group
	if name == "" {
		return nil
	}
	group, err := osuser.LookupGroup(name)
	if err == nil {
		h.gid, err = strconv.Atoi(group.Gid)
	}
	if err != nil {
		return configs.Errors{h.cfg.Errorf("control.group", "%v", err)}
	}
	return nil
}

// openControl opens the control socket, if there is to be one.
func (s *Service) openControl(h *generation) (err error) {
	if path := h.cfg.Control.Socket; path != "" {
		s.controlListener, err = admin.Listen(path, h.gid)
	}
	return err
}

// serveControl answers until ctx ends, which is after the last session.
func (s *Service) serveControl(ctx context.Context, asking net.Listener) {
	if err := s.control.Serve(ctx, asking); err != nil {
		s.log.Error("commands are not answered", "err", err)
	}
}
