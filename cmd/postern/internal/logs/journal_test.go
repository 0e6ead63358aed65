package logs

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
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

// Criterion: Under systemd the log has the journal's priorities without being configured.
func TestTheFormatAutoIsTheJournalsOnlyWhereTheJournalReads(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	own := fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
	for _, test := range []struct {
		name, stream, want string
	}{
		{"the journal", own, "<6>msg=hello\n"},
		{"another file than the journal's", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1), "level=INFO msg=hello\n"},
		{"no systemd", "", "level=INFO msg=hello\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := file.Truncate(0); err != nil {
				t.Fatal(err)
			}
			if _, err := file.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			t.Setenv("JOURNAL_STREAM", test.stream)
			New(file, "auto", new(slog.LevelVar)).Info("hello")
			got, err := os.ReadFile(file.Name())
			if err != nil {
				t.Fatal(err)
			}
			if _, after, ok := bytes.Cut(got, []byte("level=")); ok { // without its time
				got = append([]byte("level="), after...)
			}
			if string(got) != test.want {
				t.Errorf("written is %q, want %q", got, test.want)
			}
		})
	}
	t.Setenv("JOURNAL_STREAM", own)
	if err := file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(ErrorWriter(file), "one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file.Name()); string(got) != "<3>one\n<3>two\n" || err != nil {
		t.Errorf("errors are written as %q, %v", got, err)
	}
	if readByJournal(new(bytes.Buffer), own) {
		t.Error("a buffer is taken for the journal's file")
	}
}
