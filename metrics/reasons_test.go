package metrics

import (
	"bytes"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/audit"
)

// Criterion: Log, metrics and status page say the same about the same refused login, for each reason there is.
func TestLogMetricsAndPageAgreeAboutEachReason(t *testing.T) {
	titles := map[proxy.Outcome]string{
		proxy.OutcomeWrong: "Wrong password", proxy.OutcomeThrottled: "Rate limit", proxy.OutcomeFailed: "Temporary failure",
		proxy.OutcomeForbidden: "Not allowed",
	}
	row := regexp.MustCompile(`<span class="key \w+">([^<]+)</span> <span class="quiet">[^<]*</span></th><td class="number">1</td>`)
	for _, reason := range proxy.Reasons() {
		var lines bytes.Buffer
		m, p := New(config()), page.New(page.Config{})
		err := proxy.NewRefusal(reason, nil)
		attempt := proxy.Attempt{Client: client("pop3s", proxy.POP3), Via: proxy.ViaUserPass, User: "alice", Err: err}
		proxy.Observers{audit.New(slog.New(slog.NewTextHandler(&lines, nil))), m, p}.Observe(attempt)

		if want := ` reason=` + reason.String() + ` `; !strings.Contains(lines.String(), want) {
			t.Errorf("the log says %s, want%s", &lines, want)
		}
		series := fmt.Sprintf(`postern_auth_attempts_total{mechanism="userpass",protocol="pop3",result=%q}`, proxy.ResultOf(err))
		if got := scrape(t, m)[series]; got != "1" {
			t.Errorf("%s: %s is %q, want 1", reason, series, got)
		}
		_, html := get(t, p, "/")
		outcome, _ := proxy.OutcomeOf(err)
		if found := row.FindAllStringSubmatch(html, -1); len(found) != 1 || found[0][1] != titles[outcome] {
			t.Errorf("%s: the page counts %q, want %q", reason, found, titles[outcome])
		}
	}
}
