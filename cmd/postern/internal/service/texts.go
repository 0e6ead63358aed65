package service

import (
	"strings"

	"postern/configs"
	"postern/proxy"
)

// text returns the operator's text for a refusal: the text for the domain of the account,
// else the text for all domains, else "".
func (g *generation) text(r proxy.Reason, account string) string {
	_, domain, _ := strings.Cut(account, "@")
	for _, d := range g.cfg.Domains {
		if d.Domain != "" && d.Domain == strings.ToLower(domain) {
			if text := textOf(d.Texts, r); text != "" {
				return text
			}
		}
	}
	return textOf(g.cfg.Texts, r)
}

func textOf(t configs.Texts, r proxy.Reason) string {
	switch r {
	case proxy.Wrong:
		return t.Wrong
	case proxy.Throttled:
		return t.Throttled
	case proxy.Unavailable:
		return t.Unavailable
	case proxy.InUse:
		return t.InUse
	case proxy.ProtocolOff:
		return t.ProtocolOff
	case proxy.POP3Ended:
		return t.POP3Ended
	case proxy.Suspended:
		return t.Suspended
	case proxy.Unusable:
		return t.Unusable
	case proxy.Plaintext:
		return t.Plaintext
	case proxy.TooMany:
		return t.TooMany
	case proxy.TooManySessions:
		return t.TooManySessions
	case proxy.MailboxFull:
		return t.MailboxFull
	case proxy.Maintenance:
		return t.Maintenance
	}
	return ""
}
