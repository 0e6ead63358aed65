package service

import (
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// States of sd_notify(3).
const (
	ready     = daemon.SdNotifyReady
	stopping  = daemon.SdNotifyStopping
	watching  = daemon.SdNotifyWatchdog
	reloading = daemon.SdNotifyReloading
)

// notify sends a state to systemd, if systemd has started the service. READY names
// this process, because it is another one after an upgrade.
func notify(log *slog.Logger, state string) {
	if state == ready {
		state += fmt.Sprintf("\nMAINPID=%d", os.Getpid())
	}
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd is not told", "state", state, "err", err)
	}
}

// watchdog returns a channel that ticks when WATCHDOG is due, and a function that stops
// the ticks. The channel is nil if systemd wants no WATCHDOG.
func watchdog() (<-chan time.Time, func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every / 2)
	return t.C, t.Stop
}

// keepWatchdog sends WATCHDOG when it is due, until stop is called. The caller's work must
// have a time limit of its own.
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
