package proxy

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
)

// attempt writes the line about a login. There is one for each attempt; what is
// not known, or not so, is not in it.
func (a *Audit) attempt(e Attempt) {
	reason := ReasonOf(e.Err)
	if e.Err != nil && reason == 0 { // the client did not wait for its answer
		a.Log.Debug("login abandoned", a.about(e.Client, "err", e.Err)...)
		return
	}
	fields := a.about(e.Client, "protocol", e.Client.Protocol, "port", e.Client.Addr.Port(), "via", e.Via)
	fields = append(fields, ofTLS(e.Client.TLS)...)
	if e.Err == nil {
		a.remember(e.Account)
		fields = append(fields, "account", name(e.Account))
	} else {
		fields = append(append(fields, "reason", reason), a.who(e)...)
		if r, ok := errors.AsType[*Refusal](e.Err); ok && r.Doubtful {
			fields = append(fields, "doubtful", true)
		}
	}
	fields = append(fields, "user_octets", len(e.User))
	fields = append(fields, ofGuard(e.Decision)...)
	if e.Backend != "" {
		fields = append(fields, "backend", e.Backend)
	}
	if len(e.ID) > 0 {
		fields = append(fields, "client_id", idOf(e.ID))
	}
	if e.Delay > 0 {
		fields = append(fields, "delay", round(e.Delay))
	}
	fields = append(fields, "duration", round(e.Duration))
	if e.Err != nil {
		a.Log.Info("login refused", append(fields, "err", e.Err)...)
		return
	}
	a.Log.Info("login", fields...)
}

// who names an account that is known, and of another one gives a hash.
func (a *Audit) who(e Attempt) []any {
	switch {
	case e.Account != "" && a.knows(e.Account):
		return []any{"account", name(e.Account)}
	case e.User != "":
		return []any{"account_hash", a.digest(cmp.Or(e.Account, e.User))}
	}
	return nil
}

// ofTLS adds to what every line says.
func ofTLS(s *tls.ConnectionState) (fields []any) {
	if s == nil {
		return nil
	}
	if s.CurveID != 0 {
		fields = append(fields, "group", s.CurveID.String())
	}
	if s.ServerName != "" {
		fields = append(fields, "server_name", clean(s.ServerName))
	}
	if s.NegotiatedProtocol != "" {
		fields = append(fields, "alpn", clean(s.NegotiatedProtocol))
	}
	return fields
}

func ofGuard(j Decision) (fields []any) {
	if j.Network.IsValid() {
		fields = append(fields, "network", j.Network)
	}
	if j.Tier != "" {
		fields = append(fields, "tier", j.Tier)
	}
	if j.New {
		fields = append(fields, "new_network", true)
	}
	if j.Repeat {
		fields = append(fields, "repeat", true)
	}
	if j.Bucket != "" {
		fields = append(fields, "bucket", j.Bucket)
	}
	if j.RetryAfter > 0 {
		fields = append(fields, "retry_after", j.RetryAfter.Round(time.Second).String())
	}
	if j.DryRun {
		fields = append(fields, "dry_run", true)
	}
	return fields
}

// maxName bounds, in octets, what clients call themselves, in a log.
const maxName = 256

// name returns an account, or another word of a client's, as one line that shows
// what it is: bidirectional text and control characters do not.
func name(s string) string {
	if len(s) > maxName {
		s = s[:maxName-len("...")] + "..." // half a letter at the cut becomes one ?
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// idOf returns an IMAP ID in a form that can be read.
func idOf(id map[string]string) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(id)) {
		words = append(words, key+"="+id[key])
	}
	return name(strings.Join(words, " "))
}

// methods are the SASL names of ways to log in.
var methods = map[string]string{
	ViaLogin: "LOGIN", ViaXOAuth2: "XOAUTH2", ViaOAuthBearer: "OAUTHBEARER",
}

// fail2ban writes what fail2ban's filter for Dovecot reads.
func (a *Audit) fail2ban(e Attempt) {
	if a.Failures == nil || ReasonOf(e.Err) != Wrong || e.Decision.Repeat || e.Decision.Bucket != "" && !e.Decision.DryRun {
		return
	}
	user := ""
	if e.Account != "" && a.knows(e.Account) {
		user = strings.NewReplacer("<", "?", ">", "?").Replace(name(e.Account))
	}
	secured := ""
	if e.Client.TLS != nil {
		secured = ", TLS"
	}
	_, err := fmt.Fprintf(a.Failures, "%s %s-login: Info: Disconnected (auth failed, 1 attempts in %d secs): user=<%s>, method=%s, rip=%s, lip=%s%s, session=<%s>\n",
		time.Now().Format("2006-01-02T15:04:05.000000-07:00"), e.Client.Protocol, int(e.Duration.Seconds()), user,
		cmp.Or(methods[e.Via], "PLAIN"), e.Client.Addr.Addr().WithZone(""), e.Client.Local.Addr().WithZone(""), secured, e.Client.ID)
	if more, ok := a.due(err != nil, "failures"); ok {
		a.Log.Warn("a wrong password is not in the file for fail2ban", append(more, "err", err)...)
	}
}
