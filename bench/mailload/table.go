package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// A metric is a figure of a result.
type metric struct {
	unit  string
	value func(result) float64
}

var (
	cpuPerOp      = metric{"CPU ms", func(r result) float64 { return r.CPUPerOp }}
	cpuPerMessage = metric{"CPU us/message", func(r result) float64 { return r.CPUPerMsg }}
	cpuPerGB      = metric{"CPU s/GB", func(r result) float64 { return r.CPUPerGB }}
	throughput    = metric{"MB/s", func(r result) float64 { return r.MBPerS }}
	messageRate   = metric{"messages/s", func(r result) float64 { return r.MsgsPerS }}
	p50           = metric{"p50 ms", func(r result) float64 { return r.P50 }}
	p95           = metric{"p95 ms", func(r result) float64 { return r.P95 }}
	p99           = metric{"p99 ms", func(r result) float64 { return r.P99 }}
	memory        = metric{"KB each", func(r result) float64 { return r.KBPerSess }}
)

// A row is one figure of Postern beside that of its peers, with a goal: at most (or
// with more, at least) goal times the peer's figure, or, without a peer, goal.
type row struct {
	title string
	note  string // of the results
	metric
	peer string
	goal float64
	more bool
}

var rows = []row{
	{"full handshake", "handshake full", cpuPerOp, "haproxy", 0.60, false},
	{"resumed handshake", "handshake resumed", cpuPerOp, "haproxy", 0.65, false},
	{"half-open handshake, ML-KEM", "half-open", memory, "", 32, false},
	{"IMAP login", "login imap", cpuPerOp, "haproxy", 0.80, false},
	{"submission login", "login smtp", cpuPerOp, "haproxy", 1.00, false},
	{"POP3 login, half are an account's first", "login pop3", cpuPerOp, "", 0.9, false},
	{"IMAP download", "fetch", cpuPerGB, "haproxy", 0.80, false},
	{"", "fetch", throughput, "haproxy", 1.10, true},
	{"submission of 1 MB", "send 1 MB", cpuPerGB, "haproxy", 1.00, false},
	{"", "send 1 MB", throughput, "haproxy", 1.00, true},
	{"submission of 4 KB", "send 4 KB", cpuPerMessage, "haproxy", 0.95, false},
	{"POP3 poll, 10 messages", "poll n10", cpuPerOp, "", 1.0, false},
	{"", "poll n10", p50, "dovecot-imapc", 1, false},
	{"POP3 poll, 1,000 messages", "poll n1000", p50, "dovecot", 1, false},
	{"POP3 poll, 50,000 messages", "poll n50000", p50, "dovecot-imapc", 0.10, false},
	{"", "poll n50000", p95, "", 110, false},
	{"POP3 drain, 1,000 x 4 KB", "drain n1000", messageRate, "dovecot-imapc", 4, true},
	{"POP3 drain, 2,000 x 50 KB", "drain one", cpuPerGB, "", 2.0, false},
	{"", "drain one", throughput, "dovecot-imapc", 3, true},
	{"the same, 16 RETR in flight", "drain 16", throughput, "dovecot-imapc", 3.5, true},
	{"NOOP beside 1 download", "noop 1", p99, "", 9, false},
	{"NOOP beside 4 downloads", "noop 4", p99, "", 25, false},
	{"", "noop 4", throughput, "haproxy", 1, true},
	{"login beside 4 downloads", "logins 4", p99, "", 60, false},
}

// runTable reads JSON lines from the files named and prints the median of the runs
// of each server: a Markdown table with a line for each row.
func runTable(o *options) error {
	results := map[string]map[string][]result{} // note -> label -> runs
	var labels []string
	for _, name := range o.arguments {
		all, err := readResults(name)
		if err != nil {
			return err
		}
		for _, r := range all {
			if results[r.Note] == nil {
				results[r.Note] = map[string][]result{}
			}
			results[r.Note][r.Label] = append(results[r.Note][r.Label], r)
			if !slices.Contains(labels, r.Label) && r.Label != "postern" {
				labels = append(labels, r.Label)
			}
		}
	}
	labels = append([]string{"postern"}, labels...)
	fmt.Printf("| | | %s | ratio | goal | |\n|---|---|%s--:|---|---|\n", strings.Join(labels, " | "), strings.Repeat("--:|", len(labels)))
	for _, r := range rows {
		if runs := results[r.note]; len(runs["postern"]) > 0 {
			fmt.Printf("| %s | %s |%s %s |\n", r.title, r.unit, r.figures(runs, labels), r.verdict(runs))
		}
	}
	return nil
}

func readResults(name string) (all []result, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, r)
	}
	return all, lines.Err()
}

// figures returns the cells of the servers. A server with errors is marked: its figure
// is that of the rest.
func (r row) figures(runs map[string][]result, labels []string) string {
	var b strings.Builder
	for _, label := range labels {
		cell := "–"
		if len(runs[label]) > 0 {
			cell = fmt.Sprintf("%.3g", r.median(runs[label]))
		}
		if n := errorsOf(runs[label]); n > 0 {
			cell += fmt.Sprintf(" (%d errors)", n)
		}
		fmt.Fprintf(&b, " %s |", cell)
	}
	return b.String()
}

// verdict returns the ratio to the peer, the goal, and whether it is met.
func (r row) verdict(runs map[string][]result) string {
	own, sign := r.median(runs["postern"]), "<="
	if r.more {
		sign = ">="
	}
	ratio, goal, measured := "", fmt.Sprintf("%s %.3g", sign, r.goal), own
	if r.peer != "" {
		if len(runs[r.peer]) == 0 {
			return fmt.Sprintf("– | %s x %s | not measured", goal, r.peer)
		}
		measured = own / r.median(runs[r.peer])
		ratio, goal = fmt.Sprintf("%.2f x", measured), fmt.Sprintf("%s x %s", goal, r.peer)
	}
	met := "missed"
	if c := cmp.Compare(measured, r.goal); (c <= 0 && !r.more || c >= 0 && r.more) && errorsOf(runs["postern"]) == 0 {
		met = "met"
	}
	return fmt.Sprintf("%s | %s | %s", ratio, goal, met)
}

func errorsOf(runs []result) (n int) {
	for _, r := range runs {
		n += r.Errors
	}
	return n
}

func (r row) median(runs []result) float64 {
	values := make([]float64, len(runs))
	for i, run := range runs {
		values[i] = r.value(run)
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
