package stored

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"

	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/state"
)

// A Question is a request about the state. It has an In and gets any number of Outs as
// its answer. The running Postern answers at the control socket; when no Postern runs,
// the command opens the files and answers itself.
type Question[In, Out any] struct {
	Name   string
	Answer func(ctx context.Context, m *Storage, in In, each func(Out) error) error
}

// Ask calls each for every value of the answer, until each returns an error. Root opens the
// files as their owner.
func (q Question[In, Out]) Ask(ctx context.Context, cfg *configs.Config, in In, each func(Out) error) error {
	return q.ask(ctx, cfg, in, each, openExisting)
}

// AskReadOnly is Ask for a question about the record alone, which changes nothing: the
// command does not change the files that it opens.
func (q Question[In, Out]) AskReadOnly(ctx context.Context, cfg *configs.Config, in In, each func(Out) error) error {
	return q.ask(ctx, cfg, in, each, openRecord)
}

func (q Question[In, Out]) ask(ctx context.Context, cfg *configs.Config, in In, each func(Out) error,
	open func(context.Context, *configs.Config) (*Storage, error),
) error {
	running := func() error {
		if cfg.Control.Socket == "" {
			return admin.ErrNotRunning // without a control socket a running Postern cannot answer
		}
		return admin.CallEach(ctx, cfg.Control.Socket, q.Name, in, each)
	}
	err := running()
	if errors.Is(err, fs.ErrPermission) && cfg.State.Path != "" {
		return errors.Join(state.CheckPath(filepath.Join(cfg.State.Path, RecordFile), state.Options{ReadOnly: true}), err)
	}
	if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	if cfg.State.Path == "" {
		return errors.New("no Postern can be asked, and state.path is not set: nothing is remembered")
	}
	return AsOwner(cfg.State.Path, func() error {
		m, err := open(ctx, cfg)
		if errors.Is(err, state.ErrInUse) {
			if again := running(); !errors.Is(again, admin.ErrNotRunning) {
				return again // a Postern has started meanwhile
			}
		}
		if err != nil {
			return err
		}
		return errors.Join(q.Answer(ctx, m, in, each), m.Close())
	})
}

// One is Ask for an answer of one value.
func (q Question[In, Out]) One(ctx context.Context, cfg *configs.Config, in In) (out Out, err error) {
	err = q.Ask(ctx, cfg, in, func(v Out) error { out = v; return nil })
	return out, err
}

// Register makes s answer q from m.
func (q Question[In, Out]) Register(s *admin.Server, m *Storage) {
	admin.HandleEach(s, q.Name, func(ctx context.Context, in In, each func(Out) error) error {
		m.Reading.RLock()
		defer m.Reading.RUnlock()
		return q.Answer(ctx, m, in, each)
	})
}

// An AccountName is the name of an account as the argument of a Question.
type AccountName string

// LogValue implements slog.LogValuer.
func (n AccountName) LogValue() slog.Value { return admin.Arguments("account", string(n)) }
