package logs

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// Criterion: durations in the JSON log are numbers of seconds, under a key with _seconds; in the text log they are for people.
func TestDurationsInJSONAreSeconds(t *testing.T) {
	for format, want := range map[string]string{
		"json": `"duration_seconds":0.019,"g":{"delay_seconds":90},"n":3}`,
		"text": `duration=19ms g.delay=1m30s n=3`,
	} {
		var out bytes.Buffer
		New(&out, format, new(slog.LevelVar)).Info("login", "duration", 19*time.Millisecond, slog.Group("g", "delay", 90*time.Second), "n", 3)
		if got := strings.TrimSpace(out.String()); !strings.HasSuffix(got, want) {
			t.Errorf("%s: written is %s, want %s", format, got, want)
		}
	}
}
