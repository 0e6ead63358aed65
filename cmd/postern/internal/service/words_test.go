package service

import (
	"os"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/authpolicy"
	"postern/proxy/guard"
)

// Criterion: docs/logs.md explains every word that a line of the log can have for a reason, an end or a result.
func TestEveryWordOfTheLogIsExplained(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{
		proxy.ViaPlain, proxy.ViaLogin, proxy.ViaLoginCommand, proxy.ViaUserPass, proxy.ViaXOAuth2, proxy.ViaOAuthBearer, proxy.ViaOther,
		proxy.HandshakeOK, proxy.HandshakeTimeout, proxy.HandshakeSilent, proxy.HandshakeClientAbort, proxy.HandshakeBadProtocol,
		proxy.HandshakeEarly, proxy.HandshakeChallenge, proxy.HandshakeError,
		proxy.NoVersion, proxy.NoCipher, proxy.NoProtocol, proxy.NoCertificate, proxy.NoOther,
		proxy.EndClientQuit, proxy.EndClientAbort, proxy.EndBackendClosed, proxy.EndIdleTimeout, proxy.EndToken, proxy.EndDrain, proxy.EndKicked, proxy.EndRefused, proxy.EndError,
		proxy.StageSeen, proxy.StageStore, proxy.StageExpunge,
		proxy.LostClosed, proxy.LostBye, proxy.LostSilent,
		proxy.ReconnectOK, proxy.ReconnectFailed, proxy.ReconnectRenumbered,
		proxy.NoticeCache, proxy.NoticeNotProven, proxy.NoticeRecord, proxy.NoticeRecomputed, proxy.NoticeChanged, proxy.NoticeRenumbered,
		proxy.ChangeUIDValidity, proxy.ChangeUIDNext, proxy.ChangeEmptied, proxy.ChangeShrunk, proxy.ListingsFull, proxy.ListingTooLong,
		proxy.DialRefused, proxy.DialTimeout, proxy.DialTLS, proxy.DialGreeting, proxy.DialOther,
	}
	for _, r := range proxy.Reasons() {
		words = append(words, r.String())
	}
	words = append(append(append(words, guard.Tiers()...), guard.Buckets()...), authpolicy.Bucket)
	for _, word := range words {
		if !strings.Contains(string(text), "`"+word+"`") && word != "none" && word != "unknown" {
			t.Errorf("docs/logs.md does not explain %s", word)
		}
	}
}
