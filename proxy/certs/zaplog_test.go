package certs

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"go.uber.org/zap"
)

func TestCertmagicLogsOneLevelLower(t *testing.T) {
	var b bytes.Buffer
	options := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}
	log := newZap(slog.New(slog.NewTextHandler(&b, options))).With(zap.String("ca", "x"))
	log.Debug("for each handshake")
	log.Info("a step", zap.Strings("names", []string{"a", "b"}))
	log.Warn("a trouble", zap.Int("attempt", 2))
	log.Error("a failure", zap.Error(errors.New("no")))
	want := `level=DEBUG msg="acme: a step" ca=x names="[a b]"
level=INFO msg="acme: a trouble" ca=x attempt=2
level=WARN msg="acme: a failure" ca=x error=no
`
	if b.String() != want {
		t.Errorf("logged\n%s, want\n%s", b.String(), want)
	}
}
