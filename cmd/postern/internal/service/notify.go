package service

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// What systemd is told, sd_notify(3).
const (
	ready     = daemon.SdNotifyReady
	stopping  = daemon.SdNotifyStopping
	watching  = daemon.SdNotifyWatchdog
	reloading = daemon.SdNotifyReloading
)

// notify tells systemd how the service is, if it is one. READY comes with the
// process that it is about: after an upgrade this is another one.
func notify(log *slog.Logger, state string) {
	if state == ready {
		state += fmt.Sprintf("\nMAINPID=%d", os.Getpid())
	}
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd is not told", "state", state, "err", err)
	}
}

// watchdog returns when to tell systemd that we are alive: never, if it has not
// asked to be told.
func watchdog() (<-chan time.Time, func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every / 2)
	return t.C, t.Stop
}

// keepWatchdog tells systemd that we are alive until stop is called, of what has
// limits of its own.
func keepWatchdog(log *slog.Logger) (stop func()) {
	alive, stopTicks := watchdog()
	if alive == nil {
		return stopTicks
	}
	notify(log, watching)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-alive:
				notify(log, watching)
			case <-done:
				return
			}
		}
	}()
	return func() { stopTicks(); close(done) }
}
