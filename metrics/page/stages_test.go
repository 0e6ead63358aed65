package page

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Criterion: the status page shows by the day how many accounts still use the old POP3 server; a day that was not observed has no bar.
func TestTheWayFromTheOldServerIsACurve(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	days := []Stages{
		{"2026-01-01", map[string]int{"passthrough": 999}}, // too old for the chart
		{"2026-11-27", map[string]int{"passthrough": 30, "shadow": 10}},
		{"2026-11-29", map[string]int{"bridged": 25, "learnt": 10, "gone": 4, "unknown": 1, "nonsense": 7}},
	}
	c := newStageChart(days, now)
	var got []string
	for _, b := range c.Bars {
		got = append(got, b.Title)
	}
	want := []string{
		"2026-11-27: 10 Old server, compared", "2026-11-27: 30 Old server",
		"2026-11-29: 4 No POP3 any more", "2026-11-29: 25 Postern's own POP3", "2026-11-29: 10 Old server, and learnt", "2026-11-29: 1 Not known",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", got)
	}
	for _, some := range [][]Stages{nil, {{"2026-11-29", nil}}, {{"2026-11-29", map[string]int{"bridged": 0}}}} {
		if c := newStageChart(some, now); c != nil {
			t.Errorf("%v: got %+v", some, c)
		}
	}
	p := New(Config{Hostname: "mx", Stages: func() []Stages { return days }, Now: func() time.Time { return now }})
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	body := w.Body.String()
	for _, want := range []string{"Away from the old POP3 server", "POP3 accounts by the day", `<rect class="ok"`, "Logins per 15 minutes", "</html>"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}
