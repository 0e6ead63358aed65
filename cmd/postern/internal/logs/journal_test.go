package logs

import (
	"bytes"
	"log/slog"
	"testing"
)

func TestTheJournalGetsPriorities(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := New(&out, "journald", level)
	log.Debug("not asked for")
	level.Set(slog.LevelDebug)
	log.Debug("a")
	log.With("k", "v").Info("b", "text", "two\nlines", "time", "kept?")
	log.WithGroup("g").Warn("c", "level", 3)
	log.Error("d")
	want := "<7>msg=a\n<6>msg=b k=v text=\"two\\nlines\" time=kept?\n<4>msg=c g.level=3\n<3>msg=d\n"
	if got := out.String(); got != want {
		t.Errorf("written is\n%s, want\n%s", got, want)
	}
}
