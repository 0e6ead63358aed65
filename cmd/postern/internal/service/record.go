package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/state"
)

// setRecord checks where the record is, and makes the server of this Postern's own for others.
func (g *generation) setRecord() error {
	if g.cfg.State.Record != nil {
		store, err := stored.RecordStore(g.cfg, nil)
		if err == nil {
			err = store.Close()
		}
		return err
	}
	if g.cfg.Cluster.ServeRecord == "" {
		return nil
	}
	keys, err := state.ReadKeys(g.cfg.State.KeyFile)
	if err != nil {
		return configs.Errors{g.cfg.Errorf("state.key_file", "%v", err)}
	}
	g.record, err = state.NewRecordServer(keys, stored.SharedBuckets(), g.servedRecord, slog.NewLogLogger(g.log.Handler(), slog.LevelDebug))
	return err
}

// checkRecordStore connects to the shared record, and returns what to know about it: why it
// cannot be used, and what a crash or a failover would take back. Lines about what is right
// go to out. Postern starts all the same, so nothing of this is a mistake.
func (g *generation) checkRecordStore(ctx context.Context, out io.Writer) (warnings configs.Errors) {
	const key = "state.record"
	if g.cfg.State.Record == nil {
		return nil
	}
	store, err := stored.RecordStore(g.cfg, nil)
	if err != nil {
		return nil // build has reported it
	}
	defer func() { _ = store.Close() }()
	ctx, cancel := context.WithTimeoutCause(ctx, recordTimeout, fmt.Errorf("no answer within %v", recordTimeout))
	defer cancel()
	if err := store.Probe(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return configs.Errors{g.cfg.Errorf(key, "the record cannot be used now, and POP3 clients would get a temporary refusal: %v", err)}
	}
	p, ok := store.(*state.Postgres)
	if !ok {
		return nil
	}
	d, err := p.Durability(ctx)
	if err != nil {
		return configs.Errors{g.cfg.Errorf(key, "what commits of PostgreSQL are worth is not known: %v", err)}
	}
	if !d.Fsync {
		warnings = append(warnings, g.cfg.Errorf(key, "PostgreSQL at %s has fsync or full_page_writes off: a crash of its machine may lose or damage the record; set both to on", d.Host))
	}
	if d.Standbys == "" {
		return append(warnings, g.cfg.Errorf(key, "a failover of PostgreSQL may lose the last commits, as synchronous_standby_names at %s is empty: "+
			"unique ids that clients were shown in the last moment may then change, and they download that mail again; "+
			"name a standby there, or fail over only to a standby that has everything", d.Host))
	}
	if warnings == nil {
		_, _ = fmt.Fprintf(out, "%s: a commit at PostgreSQL %s is on its disk and at the standbys of synchronous_standby_names (%s) before a client sees it (synchronous_commit %s)\n",
			key, d.Host, d.Standbys, d.SynchronousCommit)
	}
	return warnings
}

// recordTimeout bounds the time in which check asks the shared record.
const recordTimeout = 5 * time.Second

// servedRecord returns the record as it is open now.
func (g *generation) servedRecord(ctx context.Context) (state.Served, error) {
	a := g.Storage.Opened.Load()
	if a == nil {
		return state.Served{}, errors.New("the record is not open yet")
	}
	return a.Served(ctx)
}
