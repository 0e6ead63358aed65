package stored

import (
	"path/filepath"
	"slices"
	"testing"

	"postern/configs"
	"postern/proxy/state"
)

// Criterion: a brake that is on, or of which that cannot be read, stands against switching the old server off; one that is off does not.
func TestBrakesThatAreOnAreReported(t *testing.T) {
	dir := t.TempDir()
	record, err := state.Open(filepath.Join(dir, RecordFile), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for backend, value := range map[string]string{"off": `{"version":1}`, "on": `{"version":1,"on":"2026-11-20T09:00:00Z"}`, "unreadable": "{"} {
		err := record.Bucket(BrakeBucket).UpdateAll(t.Context(), []string{backend}, func(string, []byte) ([]byte, error) { return []byte(value), nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := record.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := configs.Default()
	cfg.State.Path, cfg.Control.Socket = dir, ""
	var got Surroundings
	if err := ReportSurroundings.AskReadOnly(t.Context(), cfg, "", func(s Surroundings) error { got = s; return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Brakes, []string{"on", "unreadable"}) {
		t.Errorf("got %q", got.Brakes)
	}
}
