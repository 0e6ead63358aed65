package metrics

import (
	"encoding/json"
	"strings"
	"testing"
)

// A panel is a panel of the dashboard, or a row of panels.
type panel struct {
	ID        int
	Type      string
	Title     string
	Collapsed bool
	GridPos   struct{ X, Y, W, H int }
	Targets   []struct{ RefID string }
	Panels    []panel
}

// Criterion: the dashboard opens with its overview and one row; the other rows are collapsed and hold their panels.
func TestDashboardOpensWithOneRow(t *testing.T) {
	var dashboard struct{ Panels []panel }
	if err := json.Unmarshal([]byte(readOperators(t, "grafana/postern.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	rows, drawn, ids := 0, 0, make(map[int]bool)
	check := func(all []panel) {
		for i, p := range all {
			if ids[p.ID] || p.Title == "" {
				t.Errorf("panel %d %q has the id of another, or no title", p.ID, p.Title)
			}
			ids[p.ID] = true
			for _, word := range []string{"there", "95 %", "told", "Bugs", "turned away", "who "} {
				if strings.Contains(p.Title, word) {
					t.Errorf("the title %q has %q", p.Title, word)
				}
			}
			refs := make(map[string]bool)
			for _, target := range p.Targets {
				if refs[target.RefID] {
					t.Errorf("%s: two queries are %q", p.Title, target.RefID)
				}
				refs[target.RefID] = true
			}
			for _, q := range all[:i] {
				a, b := p.GridPos, q.GridPos
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Errorf("%q lies on %q", p.Title, q.Title)
				}
			}
			drawn += min(1, len(p.Targets))
		}
	}
	check(dashboard.Panels)
	for _, p := range dashboard.Panels {
		if p.Type != "row" {
			continue
		}
		rows++
		if p.Collapsed != (rows > 1) || (len(p.Panels) > 0) != p.Collapsed {
			t.Errorf("row %d, %q: collapsed: %v, with %d panels of its own", rows, p.Title, p.Collapsed, len(p.Panels))
		}
		check(p.Panels)
	}
	if rows < 6 || drawn < 65 {
		t.Errorf("there are %d rows and %d panels", rows, drawn)
	}
}
