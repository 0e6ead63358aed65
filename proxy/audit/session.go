package audit

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/proxy"
)

// handshake writes why a client could not begin TLS. Handshakes that no mail
// client would send are for the debug level.
func (l *Log) handshake(e proxy.Handshake) {
	if e.Err == nil || e.Reason == proxy.RejectedCertificate { // which has a line of its own
		return
	}
	level := slog.LevelDebug
	fields := append(connectionFields(e.Client), "result", e.Result)
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
	if level == slog.LevelInfo && !l.handshakes.allow(time.Now(), e.Client.Addr.Addr(), e.Reason) {
		level = slog.LevelDebug
	}
	// An error of crypto/tls may quote all that the client offered, up to 64 KiB.
	l.log.Log(context.Background(), level, "handshake failed", append(fields, "err", printable(e.Err.Error()))...)
}

// certificateRejected writes that a client does not accept the certificate.
func (l *Log) certificateRejected(e proxy.CertificateRejected) {
	level := slog.LevelInfo
	if !l.handshakes.allow(time.Now(), e.Client.Addr.Addr(), proxy.RejectedCertificate+" "+e.Alert) {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "certificate rejected", append(connectionFields(e.Client),
		"result", proxy.HandshakeClientAbort, "reason", proxy.RejectedCertificate, "alert", e.Alert, "tls", tls.VersionName(e.Version),
		"server_name", printableASCII(e.ServerName), "not_after", e.NotAfter.UTC().Format(time.RFC3339))...)
}

// rejected writes, once a minute for each listener and reason, that connections end
// before TLS. What concerns balancers says what to set.
func (l *Log) rejected(c proxy.Client, err error) {
	reason := proxy.RejectionOf(err)
	more, due := l.due(reason != proxy.RejectCheck, "rejected", c.Service, reason)
	fields := append(connectionFields(c), "reason", reason)
	if remedy := remedyFor(reason, c.Addr.Addr().WithZone("")); remedy != "" {
		fields = append(fields, "remedy", remedy)
	}
	level := slog.LevelDebug
	if due {
		level = slog.LevelWarn
	}
	l.log.Log(context.Background(), level, "connection refused", append(append(fields, "err", err), more...)...)
}

// remedyFor returns what an operator can set for balancers whose connections end, or
// "".
func remedyFor(reason string, peer netip.Addr) string {
	switch reason {
	case proxy.RejectNoHeader:
		return fmt.Sprintf("send-proxy-v2 at the balancer %s, or take its address out of proxy_from of this listener", peer)
	case proxy.RejectBadHeader:
		return fmt.Sprintf("send-proxy-v2 at the balancer %s: it sends something else", peer)
	case proxy.RejectUnexpectedHeader:
		return fmt.Sprintf("proxy_from: [%s] at this listener, if %[1]s is your balancer", peer)
	}
	return ""
}

func (l *Log) closed(e proxy.Closed) {
	if errors.Is(e.Err, proxy.ErrUnexpectedProxyHeader) {
		l.rejected(e.Client, e.Err)
	}
	level := slog.LevelDebug
	if e.Account != "" {
		level = slog.LevelInfo
	}
	fields := l.clientFields(e.Client, "account", printable(e.Account), "backend", e.Backend, "end", e.End, "duration", round(e.Duration),
		"received", e.Received, "sent", e.Sent)
	switch e.Client.Protocol {
	case proxy.POP3:
		fields = append(fields, "retrieved", e.Totals.Retrieved, "deleted", e.Totals.Deleted)
		if e.Totals.Mode != "" {
			fields = append(fields, "mode", e.Totals.Mode)
		}
		if e.Account != "" && (e.Totals.UIDLsBefore != 0 || e.Totals.UIDLsAfter != 0) { // else the maildrop is empty, or the old server's
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
	fields := append(connectionFields(c), "tls", tlsVersion(c.TLS))
	if c.TLS != nil {
		fields = append(fields, "cipher", tls.CipherSuiteName(c.TLS.CipherSuite), "needs", proxy.ProfileOf(c.TLS).String())
	}
	return append(fields, more...)
}

// connectionFields returns the fields of every line about a connection.
func connectionFields(c proxy.Client) []any {
	return []any{"listener", c.Service, "ip", c.Addr.Addr(), "session", c.ID}
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

// round returns d in the precision of the log.
func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
