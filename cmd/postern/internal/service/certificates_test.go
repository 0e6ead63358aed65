package service

import (
	"log/slog"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy/certs"
)

// Criterion: readiness is degraded when less than a quarter of a certificate's lifetime and than 14 days are left.
func TestReadinessIsDegradedNearTheEndOfACertificate(t *testing.T) {
	cert, err := certs.SelfSigned("mail.example.org")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for left, degraded := range map[time.Duration]bool{26 * time.Hour: false, 24 * time.Hour: true, -time.Hour: true} {
		cert.Leaf.NotAfter = now.Add(left)
		cert.Leaf.NotBefore = cert.Leaf.NotAfter.Add(-100 * time.Hour)
		store, err := certs.Static(cert)
		if err != nil {
			t.Fatal(err)
		}
		if err := New(&configs.Config{}, store, slog.New(slog.DiscardHandler), nil).degraded(); (err != nil) != degraded {
			t.Errorf("with %v of 100h left: %v, want degraded: %v", left, err, degraded)
		}
	}
}
