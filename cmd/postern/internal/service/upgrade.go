package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"postern/bridge"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

// An upgrade replaces the process, and no client notices. The old one
// starts the new one with copies of its listening sockets, and the two talk over
// a pair of sockets:
//
//	new -> old   Built     the configuration is valid
//	old -> new   Yours     the old one accepts nothing and has closed the state
//	new -> old   Serving   the new one accepts; the old one keeps its sessions
//	old -> new   Take      a login that was under way has opened a maildrop
//	old -> new   Free      a session has ended its maildrop
//	new -> old   Evict     somebody takes a maildrop over
//	old -> new   Outcomes  how logins have ended, and how the sessions of the old one end
//
// Ask and Answer are in predecessor.go.
//
// An old one that has a predecessor of its own passes Take, Free and Evict on, and
// ends after it: the end of a process is the end of all locks that came from it.
//
// Until Serving the old one can take everything back. Then its sessions go on
// until they end, or for timeouts.upgrade; they read and write the state through
// the new one.

// upgrade starts a successor and gives it everything but the sessions. After an
// error this process serves as before.
func (s *Service) upgrade(background context.Context) error {
	s.log.Info("upgrade begins", "binary", s.binary)
	defer keepWatchdog(s.log)()
	err := errors.Join(checkUpgradable(os.Getpid()), s.Storage.Broken()) // a broken file cannot be handed over
	var next *successor
	if err == nil {
		next, err = startSuccessor(s.binary, s.sockets)
	}
	if err == nil {
		err = s.handOver(background, next)
	}
	if err != nil {
		s.log.Error("not upgraded: this process goes on", "err", err)
		return err
	}
	s.log.Info("upgraded: the sessions that are left are this process's", "successor", next.cmd.Process.Pid)
	s.successor = next
	return nil
}

// checkUpgradable returns an error for the first process of a container: its end ends all
// other processes, a successor too.
func checkUpgradable(pid int) error {
	if pid != 1 {
		return nil
	}
	return errors.New("the container ends with this process: start another container in place of it")
}

func (s *Service) handOver(background context.Context, next *successor) error {
	defer next.closeFiles()
	w, err := next.await(buildTimeout, func(w message) bool { return w.Built }, s.handleMessage)
	if err == nil {
		err = s.checkControl(w.Control)
	}
	if err == nil && !s.Storage.Reading.TryLock() {
		err = errStateBusy // nothing bounds the time for which the state stays busy
	}
	if err != nil {
		next.abort()
		return err
	}
	defer s.Storage.Reading.Unlock()
	left, err := s.release(next)
	if err == nil {
		err = next.send(message{Yours: left})
	}
	if err == nil {
		_, err = next.await(serveTimeout, func(w message) bool { return w.Serving }, s.handleMessage)
	}
	if err == nil {
		go next.receiveAll(func(w message) {
			if w.Ask != nil {
				go s.answerSuccessor(next, w.Ask)
			}
			s.handleMessage(w)
		})
		s.outcomes.Export(next.enqueueOutcomes)
		return nil
	}
	close(next.back)
	next.abort()
	if s.fatal = s.resume(background, next); s.fatal != nil {
		s.fatal = fmt.Errorf("serve again after an upgrade that failed: %w", s.fatal)
	}
	return errors.Join(err, s.fatal)
}

var errStateBusy = errors.New("a command is reading the state: upgrade again when it has ended")

// checkControl returns an error if the remaining sessions could not store their data: they
// use the successor's control socket, control.
func (s *Service) checkControl(control string) error {
	here := s.current.Load().cfg
	switch {
	case s.Storage.Buckets == nil || control == here.Control.Socket && control != "":
		return nil
	case here.Control.Socket == "":
		return configs.Errors{here.Errorf("control.socket", "it is off, and without it an upgrade would lose what open sessions remember: restart Postern, or set it first")}
	}
	return configs.Errors{here.Errorf("control.socket", "an upgrade cannot change this, nor its default by state.path: restart Postern")}
}

// release stops accepting, and releases all parts that only one process may have.
func (s *Service) release(next *successor) (*handover, error) {
	if err := s.server.Apply(nil); err != nil {
		return nil, err
	}
	for key, w := range s.endpoints {
		_ = w.server.Close()
		delete(s.endpoints, key)
	}
	if s.controlListener != nil {
		_ = s.controlListener.Close() // open connections stay: the command upgrade still gets its answer
	}
	s.stopWriters()
	left := &handover{
		Locks: make(map[string][]string), NameKey: s.audit.Key(),
		PID: os.Getpid(), Drains: s.current.Load().drains(), Drained: s.drained.Load(),
	}
	if s.Storage.Guard == nil {
		left.Guard = s.guard.Snapshot()
	}
	for name, shared := range s.current.Load().pop3.shared {
		left.Locks[name] = shared.locks.HandOver(func(maildrop string, open bool) {
			w := message{Free: &maildropName{name, maildrop}}
			if open {
				w = message{Take: w.Free}
			}
			next.enqueue(w)
		})
	}
	socket := s.current.Load().cfg.Control.Socket
	return left, s.Storage.HandOver(func(name string) bridge.Bucket { return stored.NewRemoteBucket(socket, name, next.back) })
}

// resume serves again after a successor has failed.
func (s *Service) resume(background context.Context, next *successor) error {
	g := s.current.Load()
	for _, shared := range g.pop3.shared {
		shared.locks.HandOver(nil)
	}
	if err := s.sockets.Inherit(next.files); err != nil {
		return err
	}
	if s.Storage.Buckets != nil {
		if err := s.Storage.TakeBack(background, g.cfg); err != nil {
			return err
		}
	}
	if err := s.openControl(g); err != nil {
		return err
	}
	if err := s.apply(background, g); err != nil {
		return err
	}
	s.startWriters(background)
	return nil
}

// handleMessage handles Evict of a successor: it ends the session of a maildrop.
func (s *Service) handleMessage(w message) {
	if w.Evict == nil {
		return
	}
	if shared, ok := s.current.Load().pop3.shared[w.Evict.Backend]; ok {
		shared.locks.Evict(w.Evict.Maildrop)
	}
}

// inherit waits for the handover of a predecessor to g, which is built.
func (s *Service) inherit(g *generation, from *Peer) error {
	if err := from.send(message{Built: true, Control: g.cfg.Control.Socket}); err != nil {
		return err
	}
	var early []message
	w, err := from.await(serveTimeout, func(w message) bool { return w.Yours != nil }, func(w message) { early = append(early, w) })
	if err != nil {
		return err
	}
	s.predecessor, s.inheritedGuard, s.predecessorEnded = from, w.Yours.Guard, make(chan struct{})
	s.audit.SetKey(w.Yours.NameKey)
	g.drain(w.Yours.Drains)
	s.drained.Store(w.Yours.Drained)
	from.pid = w.Yours.PID
	changes := make(map[string]func(string, bool))
	var ends []func()
	for name, maildrops := range w.Yours.Locks {
		change, end := g.maildropsOf(name).locks.Hold(maildrops, func(maildrop string) {
			_ = from.send(message{Evict: &maildropName{name, maildrop}})
		})
		changes[name], ends = change, append(ends, end)
	}
	apply := func(w message) {
		if w.Outcomes != nil {
			s.importOutcomes(w.Outcomes)
		}
		if w.Answer != nil {
			from.asking.receive(w.Answer)
		}
		if m := cmp.Or(w.Take, w.Free); m != nil && changes[m.Backend] != nil {
			changes[m.Backend](m.Maildrop, w.Take != nil)
		}
	}
	for _, w := range early {
		apply(w)
	}
	go func() {
		from.receiveAll(apply)
		from.gone.Store(true)
		for _, end := range ends { // the predecessor has ended, and its sessions with it
			end()
		}
		close(s.predecessorEnded)
	}()
	return nil
}
