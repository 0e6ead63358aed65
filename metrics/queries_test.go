package metrics

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// exported is what a scrape has: the values of each label, by the name of a
// series. The values of labels that the configuration fills are config()'s.
type exported map[string]map[string][]string

// fromTheConfiguration are the labels of which a query must not know a value.
var fromTheConfiguration = []string{"listener", "backend", "name", "provider", "key"}

func scraped(t *testing.T) exported {
	t.Helper()
	_, body := get(t, complete().Handler(), "/metrics")
	all := exported{"up": {}}
	for line := range strings.Lines(body) {
		if series := sample.FindStringSubmatch(line); series != nil {
			all.add(series[1], series[2])
		}
	}
	return all
}

// complete returns Metrics with all that can be exported.
func complete() *Metrics {
	c := config()
	c.Certificates = func() []Certificate {
		return []Certificate{{Name: "mail.example.org", Source: "file", NotAfter: time.Now()}}
	}
	c.Findings = func() map[string]int { return map[string]int{"expired": 1, "expires_soon": 1, "no_san": 0} }
	c.Guard, c.Accounts = func() Guard { return Guard{} }, func() Accounts { return Accounts{} }
	c.Decisions = Decisions{Tiers: []string{"known"}, Buckets: []string{"pair"}}
	c.Pools = func() []Pool { return []Pool{{Backend: Backend{"main", proxy.IMAP}, PortLimit: 28232}} }
	c.Listings = func() int64 { return 0 }
	c.Tokens = func() []Provider {
		return []Provider{{Name: "contoso", Known: true, Last: time.Now(), NotAfter: time.Now()}}
	}
	c.Passwords = func() Passwords {
		return Passwords{Devices: map[string]int{"ok": 1, "expired": 0, "foreign_key": 0, "damaged": 0}, Hashes: true}
	}
	c.Stale = func() map[string]bool { return map[string]bool{"policy.file": false} }
	c.Parking = func() Parking { return Parking{} }
	m := New(c)
	for _, e := range everything(client("imaps", proxy.IMAP), "text") {
		m.Observe(e)
	}
	return m
}

func (e exported) add(name, labels string) {
	if e[name] == nil {
		e[name] = map[string][]string{}
	}
	for _, l := range matcher.FindAllStringSubmatch(labels, -1) {
		e[name][l[1]] = append(e[name][l[1]], l[3])
	}
}

var (
	sample   = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? `)
	selector = regexp.MustCompile(`\b((?:postern|process|go)_\w+|up)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
)

// faults says which names, labels and values of a query nobody exports.
func (e exported) faults(query string) (all []string) {
	asked := map[string]bool{"instance": true, "job": true} // Prometheus' own
	for _, s := range selector.FindAllStringSubmatch(query, -1) {
		labels, known := e[s[1]]
		if !known {
			all = append(all, "no series "+s[1])
			continue
		}
		for name := range labels {
			asked[name] = true
		}
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			if m[1] == "instance" || m[1] == "job" {
				continue
			}
			for value := range strings.SplitSeq(m[3], "|") {
				if slices.Contains(fromTheConfiguration, m[1]) || !slices.Contains(labels[m[1]], value) {
					all = append(all, s[1]+" has no "+m[1]+`="`+value+`"`)
				}
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for name := range strings.SplitSeq(g[1], ", ") {
			if !asked[name] {
				all = append(all, "no series has the label "+name)
			}
		}
	}
	return all
}

func TestQueriesOfNothingAreFound(t *testing.T) {
	e := exported{"postern_a_total": {"result": {"ok"}, "listener": {"imap"}}}
	for query, want := range map[string]int{
		`sum by (result) (rate(postern_a_total{result="ok", job="postern"}[5m]))`: 0,
		`rate(postern_b_total[5m])`:                                        1,
		`postern_a_total{result=~"ok|good"} / postern_a_total{other="ok"}`: 2,
		`sum by (other) (postern_a_total)`:                                 1,
		`postern_a_total{listener="imap"}`:                                 1, // is another's elsewhere
	} {
		if got := e.faults(query); len(got) != want {
			t.Errorf("%s has the faults %q, want %d", query, got, want)
		}
	}
}

// Criterion: Every query of the dashboard and of the alert rules asks for names, labels and values that are exported.
func TestQueriesAskForWhatIsExported(t *testing.T) {
	e := scraped(t)
	for file, queries := range map[string][]string{
		"grafana/postern.json":  dashboardQueries(t),
		"prometheus/alerts.yml": {readOperators(t, "prometheus/alerts.yml")},
	} {
		if len(queries) == 0 {
			t.Errorf("%s has no queries", file)
		}
		for _, query := range queries {
			for _, fault := range e.faults(query) {
				t.Errorf("%s: %s: %s", file, fault, query)
			}
		}
	}
}

// dashboardQueries are those of all panels and annotations.
func dashboardQueries(t *testing.T) (all []string) {
	t.Helper()
	var dashboard any
	if err := json.Unmarshal([]byte(readOperators(t, "grafana/postern.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if query, ok := v["expr"].(string); ok {
				all = append(all, query)
			}
			for _, below := range v {
				walk(below)
			}
		case []any:
			for _, below := range v {
				walk(below)
			}
		}
	}
	walk(dashboard)
	return all
}

// readOperators reads one of the files that an operator wants.
func readOperators(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../configs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var update = flag.Bool("update", false, "write the list of metrics into docs/monitoring.md")

// Criterion: docs/monitoring.md lists every metric with its labels and meaning.
func TestTheListOfMetricsIsCurrent(t *testing.T) {
	const path, begin, end = "../docs/monitoring.md", "<!-- make reference -->\n", "<!-- end -->\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(after, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the list", path)
	}
	want := before + begin + listOfMetrics(t) + end + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(text) != want {
		t.Errorf("%s is old: run 'make reference'", path)
	}
}

func listOfMetrics(t *testing.T) string {
	t.Helper()
	families, err := complete().registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| name | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), prefix+"_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, " "), f.GetHelp())
	}
	return b.String()
}
