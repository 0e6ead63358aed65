package main

import (
	"context"
	"errors"
	"net"
	osuser "os/user"
	"strconv"

	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/state"
)

// A question is about what Postern remembers. The Postern that runs answers it
// through the control socket; when none runs, the one who asks opens the files.
type question[In, Out any] struct {
	name   string
	answer func(ctx context.Context, m *memory, in In, each func(Out) error) error
}

// ask calls each for every value of the answer.
func (q question[In, Out]) ask(ctx context.Context, cfg *configs.Config, in In, each func(Out) error) error {
	running := func() error {
		if cfg.Control.Socket == "" {
			return admin.ErrNotRunning // that can be asked
		}
		return admin.CallEach(ctx, cfg.Control.Socket, q.name, in, each)
	}
	err := running()
	if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	m, err := reopenMemory(ctx, cfg)
	if errors.Is(err, state.ErrInUse) {
		if again := running(); !errors.Is(again, admin.ErrNotRunning) {
			return again // it has started meanwhile
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(q.answer(ctx, m, in, each), m.Close())
}

// one is ask for an answer of one value.
func (q question[In, Out]) one(ctx context.Context, cfg *configs.Config, in In) (out Out, err error) {
	err = q.ask(ctx, cfg, in, func(v Out) error { out = v; return nil })
	return out, err
}

// answered makes s answer q of m.
func (q question[In, Out]) answered(s *admin.Server, m *memory) {
	admin.HandleEach(s, q.name, func(ctx context.Context, in In, each func(Out) error) error {
		m.asked.RLock()
		defer m.asked.RUnlock()
		return q.answer(ctx, m, in, each)
	})
}

// newControl returns what answers the questions of subcommands. What only a
// Postern that runs can do is an admin.Handle here, and an admin.Call there.
func (s *site) newControl() *admin.Server {
	c := &admin.Server{Log: s.log, Routine: []string{askGet, askSwap, askScan}}
	s.answerOperator(c)
	forgetUIDLs.answered(c, s.memory)
	exportUIDLs.answered(c, s.memory)
	importUIDLs.answered(c, s.memory)
	acceptChanges.answered(c, s.memory)
	uidlHistory.answered(c, s.memory)
	undoUIDLs.answered(c, s.memory)
	s.memory.serving = s.serving
	answerCerts(c, s.store)
	s.answerGuard(c)
	admin.Handle(c, "reload", s.whenAsked(s.reload))
	admin.Handle(c, "upgrade", s.whenAsked(s.upgrade))
	s.answerPredecessor(c)
	return c
}

// setControl finds out who may ask.
func (h *house) setControl() error {
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
func (s *site) openControl(h *house) (err error) {
	if path := h.cfg.Control.Socket; path != "" {
		s.asking, err = admin.Listen(path, h.gid)
	}
	return err
}

// serveControl answers until ctx ends, which is after the last session.
func (s *site) serveControl(ctx context.Context, asking net.Listener) {
	if err := s.control.Serve(ctx, asking); err != nil {
		s.log.Error("commands are not answered", "err", err)
	}
}
