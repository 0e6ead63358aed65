package audit

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// methods are the names that Dovecot's log gives to ways of logging in; PLAIN is
// all others'.
var methods = map[string]string{
	proxy.ViaLogin: wire.MechanismLogin, proxy.ViaXOAuth2: wire.MechanismXOAuth2, proxy.ViaOAuthBearer: wire.MechanismOAuthBearer,
}

// fail2ban writes a line about a wrong password that fail2ban's filter for Dovecot
// matches.
func (l *Log) fail2ban(e proxy.Attempt) {
	if l.Failures == nil || proxy.ReasonOf(e.Err) != proxy.Wrong || e.Decision.Repeat || e.Decision.Bucket != "" && !e.Decision.DryRun {
		return
	}
	user := ""
	if e.Account != "" && l.isKnown(e.Account) {
		user = strings.NewReplacer("<", "?", ">", "?").Replace(printable(e.Account))
	}
	secured := ""
	if e.Client.TLS != nil {
		secured = ", TLS"
	}
	_, err := fmt.Fprintf(l.Failures, "%s %s-login: Info: Disconnected (auth failed, 1 attempts in %d secs): user=<%s>, method=%s, rip=%s, lip=%s%s, session=<%s>\n",
		time.Now().Format("2006-01-02T15:04:05.000000-07:00"), e.Client.Protocol, int(e.Duration.Seconds()), user,
		cmp.Or(methods[e.Via], wire.MechanismPlain), e.Client.Addr.Addr().WithZone(""), e.Client.Local.Addr().WithZone(""), secured, e.Client.ID)
	if more, ok := l.due(err != nil, "failures"); ok {
		l.log.Warn("a wrong password is not in the file for fail2ban", append(more, "err", err)...)
	}
}
