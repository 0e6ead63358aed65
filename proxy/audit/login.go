package audit

import (
	"cmp"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"postern/proxy"
)

// attempt writes the line about a login, one for each attempt. Fields that are
// empty or false are left out.
func (l *Log) attempt(e proxy.Attempt) {
	reason := proxy.ReasonOf(e.Err)
	if e.Err != nil && reason == 0 { // the client did not wait for its answer
		l.log.Debug("login abandoned", l.clientFields(e.Client, "err", e.Err)...)
		return
	}
	fields := l.clientFields(e.Client, "protocol", e.Client.Protocol, "port", e.Client.Addr.Port(), "via", e.Via)
	fields = append(fields, tlsFields(e.Client.TLS)...)
	if e.Err == nil {
		l.remember(e.Account)
		fields = append(fields, "account", printable(e.Account))
	} else {
		fields = append(append(fields, "reason", reason), l.accountField(e)...)
		if r, ok := errors.AsType[*proxy.Refusal](e.Err); ok && r.Doubtful {
			fields = append(fields, "doubtful", true)
		}
	}
	fields = append(fields, "user_octets", len(e.User))
	fields = append(fields, decisionFields(e.Decision)...)
	if e.Backend != "" {
		fields = append(fields, "backend", e.Backend)
	}
	if e.Device != "" {
		fields = append(fields, "device", e.Device)
	}
	if len(e.ID) > 0 {
		fields = append(fields, "client_id", idOf(e.ID))
	}
	if e.Delay > 0 {
		fields = append(fields, "delay", round(e.Delay))
	}
	fields = append(fields, "duration", round(e.Duration))
	if e.Err != nil {
		l.log.Info("login refused", append(fields, "err", e.Err)...)
		return
	}
	l.log.Info("login", fields...)
}

// accountField returns the field that names the account, or the hash and the shape of a
// name that is not known.
func (l *Log) accountField(e proxy.Attempt) []any {
	if e.Account != "" && l.isKnown(e.Account) {
		return []any{"account", printable(e.Account)}
	}
	if name := cmp.Or(e.Account, e.User); e.User != "" {
		return []any{"account_hash", l.Hash(name).String(), "name_shape", l.shapeOf(name)}
	}
	return nil
}

// Account returns the fields by which the lines about logins name an account, or a name that
// is not known. account is "" if the name, as typed, can be that of no account.
func (l *Log) Account(account, typed string) []slog.Attr {
	return slog.Group("", l.accountField(proxy.Attempt{Account: account, User: typed})...).Value.Group()
}

// tlsFields returns the fields about TLS that only logins have.
func tlsFields(s *tls.ConnectionState) (fields []any) {
	if s == nil {
		return nil
	}
	if s.CurveID != 0 {
		fields = append(fields, "group", s.CurveID.String())
	}
	if s.ServerName != "" {
		fields = append(fields, "server_name", printableASCII(s.ServerName))
	}
	if s.NegotiatedProtocol != "" {
		fields = append(fields, "alpn", printableASCII(s.NegotiatedProtocol))
	}
	return fields
}

// decisionFields returns the fields about the guard's decision.
func decisionFields(d proxy.Decision) (fields []any) {
	if d.Network.IsValid() {
		fields = append(fields, "network", d.Network)
	}
	if d.Tier != "" {
		fields = append(fields, "tier", d.Tier)
	}
	if d.New {
		fields = append(fields, "new_network", true)
	}
	if d.Repeat {
		fields = append(fields, "repeat", true)
	}
	if d.Bucket != "" {
		fields = append(fields, "bucket", d.Bucket)
	}
	if d.RetryAfter > 0 {
		fields = append(fields, "retry_after", d.RetryAfter.Round(time.Second).String())
	}
	if d.DryRun {
		fields = append(fields, "dry_run", true)
	}
	return fields
}
