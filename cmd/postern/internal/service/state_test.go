package service

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

// Criterion: A record.db that was removed while Postern runs is in the log and in the state of health within a minute, also when nobody logs in.
func TestARemovedRecordIsReportedWithinAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
		storage, err := stored.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		s := &Service{Storage: storage, log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.reportBroken(ctx) }()
		if err := os.Remove(filepath.Join(cfg.State.Path, stored.RecordFile)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		<-done
		if storage.Broken() == nil || !s.stateGauges().Broken[stored.RecordFile] {
			t.Error("nothing has noticed it")
		}
		if got := log.String(); strings.Count(got, "state is broken") != 1 || !strings.Contains(got, "postern state restore") {
			t.Errorf("the log has\n%s", got)
		}
		_ = storage.Files.Cache.Close()
	})
}
