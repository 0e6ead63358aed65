package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"postern/configs"
	"postern/proxy/admin"
)

func reloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make the running Postern read its configuration again",
		Long: `Make the running Postern read its configuration again, as SIGHUP does. Sessions
that are open live on. After a mistake nothing has changed, and the mistakes are
printed.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return askForChange(cmd.Context(), *path, "reload", "SIGHUP")
	}
	return cmd
}

// askForChange asks the Postern that runs with the configuration at path to
// change itself.
func askForChange(ctx context.Context, path, what, signal string) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if cfg.Control.Socket == "" {
		return fmt.Errorf("control.socket is off: send %s, and look into the log", signal)
	}
	var answer changed
	if err := admin.Call(ctx, cfg.Control.Socket, what, struct{}{}, &answer); err != nil {
		return err
	}
	if answer.Mistakes != nil {
		return answer.Mistakes
	}
	return nil
}

// changed is the answer to a reload or an upgrade.
type changed struct {
	Mistakes configs.Errors `json:"mistakes,omitempty"` // then nothing has changed
}

// A change is what somebody asks of the site, and where the outcome is awaited.
type change struct {
	do   func(background context.Context) error
	done chan<- error
}

// whenAsked returns the answer of the control socket that makes a change.
func (s *site) whenAsked(do func(context.Context) error) func(context.Context, struct{}) (changed, error) {
	return func(ctx context.Context, _ struct{}) (answer changed, err error) {
		done := make(chan error, 1)
		select {
		case s.changes <- change{do, done}:
		case <-ctx.Done():
			return answer, context.Cause(ctx)
		}
		err = <-done
		if mistakes, ok := errors.AsType[configs.Errors](err); ok {
			return changed{mistakes}, nil
		}
		return answer, err
	}
}

// changeUntil makes what is asked for, one after the other, until ctx ends, a
// successor serves, or nobody can. What is then served lives in background.
func (s *site) changeUntil(ctx, background context.Context, signals <-chan os.Signal) {
	alive, stop := watchdog()
	defer stop()
	for s.successor == nil && s.fallen == nil {
		select {
		case <-alive:
			s.notify(watching)
		case got := <-signals:
			if got == syscall.SIGHUP {
				_ = s.reload(background) // it is in the log
			} else {
				_ = s.upgrade(background)
			}
		case c := <-s.changes:
			c.done <- c.do(background)
		case <-ctx.Done():
			return
		}
	}
}

// reload reads the configuration again. Either all of it is served, or there
// are mistakes and nothing has changed.
func (s *site) reload(ctx context.Context) error {
	s.notify(reloading)
	defer s.notify(ready)
	err := s.replace(ctx)
	s.metrics.Reloaded(err == nil)
	if err != nil {
		s.log.Error("configuration not loaded: the one before is still served", "err", err)
		return err
	}
	s.log.Info("configuration loaded")
	return nil
}

func (s *site) replace(ctx context.Context) error {
	if s.path == "" {
		return errors.New("there is no configuration file to read again")
	}
	cfg, err := configs.Load(s.path)
	if err != nil {
		return err
	}
	if err := s.unchangeable(cfg); err != nil {
		return err
	}
	h, err := build(cfg, s)
	if err != nil {
		return err
	}
	if err := s.store.Configure(sources(cfg)); err != nil {
		return configs.Errors{cfg.Errorf("tls.certificates", "%v", err)}
	}
	if err := s.apply(ctx, h); err != nil {
		if undone := s.store.Configure(sources(s.house.Load().cfg)); undone != nil { // it was good, but its files may have changed
			s.log.Error("certificates are those of the configuration that was not loaded: mend these, and reload", "err", undone)
		}
		return err
	}
	s.guard.Reload(guardConfig(cfg))
	return nil
}

// unchangeable returns what of cfg only a restart can bring.
func (s *site) unchangeable(cfg *configs.Config) error {
	now := s.house.Load().cfg
	var mistakes configs.Errors
	for key, changed := range map[string]bool{
		"state.path":     cfg.State != now.State,
		"control.socket": cfg.Control != now.Control,
		"log.format":     cfg.Log.Format != now.Log.Format,
		"log.fail2ban":   cfg.Log.Fail2ban != now.Log.Fail2ban,
	} {
		if changed {
			mistakes = append(mistakes, cfg.Errorf(key, "this can not change while Postern runs: restart it"))
		}
	}
	if mistakes == nil {
		return nil
	}
	return mistakes
}
