package audit

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// handshake writes why a client could not begin TLS. Handshakes that no mail
// client would send are for the debug level.
func (l *Log) handshake(e proxy.Handshake) {
	if e.Err == nil {
		return
	}
	level := slog.LevelDebug
	fields := []any{"listener", e.Client.Service, "ip", e.Client.Addr.Addr(), "session", e.Client.ID, "result", e.Result}
	if e.Hello != nil {
		fields = append(fields, "server_name", printableASCII(e.Hello.ServerName), "offered", versions(e.Hello))
	}
	if e.Reason != "" {
		level = slog.LevelInfo
		fields = append(fields, "reason", e.Reason)
	}
	if e.Reason == proxy.NoVersion || e.Reason == proxy.NoCipher {
		fields = append(fields, "needs", cmp.Or(e.Needs, "none"))
	}
	if level == slog.LevelInfo && !l.handshakes.allow(time.Now()) {
		level = slog.LevelDebug
	}
	// An error of crypto/tls may quote all that the client offered, up to 64 KiB.
	l.log.Log(context.Background(), level, "handshake failed", append(fields, "err", printable(e.Err.Error()))...)
}

func (l *Log) closed(e proxy.Closed) {
	level := slog.LevelDebug
	if e.Account != "" {
		level = slog.LevelInfo
	}
	fields := l.clientFields(e.Client, "account", printable(e.Account), "backend", e.Backend, "end", e.End, "duration", round(e.Duration),
		"received", e.Received, "sent", e.Sent)
	switch e.Client.Protocol {
	case proxy.POP3:
		fields = append(fields, "retrieved", e.Totals.Retrieved, "deleted", e.Totals.Deleted)
		if e.Account != "" {
			fields = append(fields, "uidls_before", hash16(e.Totals.UIDLsBefore), "uidls_after", hash16(e.Totals.UIDLsAfter))
		}
	case proxy.Submission:
		fields = append(fields, "submitted", e.Totals.Submitted)
	}
	if e.Err != nil && (e.End == proxy.EndError || e.End == proxy.EndForbiddenCommand) {
		fields = append(fields, "err", e.Err)
	}
	if e.End == proxy.EndForbiddenCommand {
		level = slog.LevelWarn
	}
	l.log.Log(context.Background(), level, "connection ended", fields...)
}

// hash16 returns n with all its digits, so that an operator can search for it.
func hash16(n uint64) string { return fmt.Sprintf("%016x", n) }

// clientFields returns the fields of a line about a client. They are not grouped: people
// search for them with grep.
func (l *Log) clientFields(c proxy.Client, more ...any) []any {
	fields := []any{"listener", c.Service, "ip", c.Addr.Addr(), "session", c.ID, "tls", tlsVersion(c.TLS)}
	if c.TLS != nil {
		fields = append(fields, "cipher", tls.CipherSuiteName(c.TLS.CipherSuite), "needs", proxy.ProfileOf(c.TLS).String())
	}
	return append(fields, more...)
}

func tlsVersion(s *tls.ConnectionState) string {
	if s == nil {
		return "none"
	}
	return tls.VersionName(s.Version)
}

// versions returns the versions of TLS that a client offers, the newest first.
func versions(h *tls.ClientHelloInfo) string {
	var names []string
	for v := uint16(tls.VersionTLS13); v >= tls.VersionTLS10; v-- {
		if slices.Contains(h.SupportedVersions, v) {
			names = append(names, tls.VersionName(v))
		}
	}
	if names == nil {
		return "older"
	}
	return strings.Join(names, " ")
}

// round returns d in the form that people read. In JSON slog would write
// nanoseconds.
func round(d time.Duration) string { return d.Round(time.Millisecond).String() }
