package page

import (
	"fmt"
	"time"
)

// Stages counts the accounts that have ever used POP3 at the end of a day, by the keys of
// stageRows.
type Stages struct {
	Day      string // in UTC, such as 2026-11-22
	Accounts map[string]int
}

// stageRows are what the page says about each stage, in the order of the chart, from the
// bottom.
var stageRows = [...]struct{ stage, class, name string }{
	{"gone", "forbidden", "No POP3 any more"},
	{"bridged", "ok", "Postern's own POP3"},
	{"learnt", "throttled", "Old server, and learnt"},
	{"shadow", "wrong", "Old server, compared"},
	{"passthrough", "failed", "Old server"},
	{"unknown", "unknown", "Not known"},
}

// stageDays is how many days the chart has.
const stageDays = 90

// newStageChart returns the chart of the last days up to now; nil: no account was counted. A
// day that was not observed has no bar.
func newStageChart(days []Stages, now time.Time) *chart {
	byDay, most := make(map[string]Stages, len(days)), 0
	for _, d := range days {
		sum := 0
		for _, row := range stageRows {
			sum += d.Accounts[row.stage]
		}
		byDay[d.Day], most = d, max(most, sum)
	}
	if most == 0 {
		return nil
	}
	top := scaleMax(most)
	c := &chart{
		Title: "POP3 accounts", Caption: "POP3 accounts by the day", Max: count(top), Half: count(top / 2),
		Label: fmt.Sprintf("POP3 accounts of the last %d days by what serves them: at most %s", stageDays, count(most)),
	}
	for _, row := range stageRows {
		c.Keys = append(c.Keys, total{Class: row.class, Name: row.name})
	}
	step := chartWidth / stageDays
	for i := range stageDays {
		at := now.UTC().AddDate(0, 0, i-stageDays+1)
		if at.Weekday() == time.Monday && i%14 < 7 && i < stageDays*9/10 {
			c.Hours = append(c.Hours, hour{float64(i) * step, 100 * float64(i) / stageDays, at.Format("2 Jan")})
		}
		y := chartHeight
		for _, row := range stageRows {
			n := byDay[at.Format(time.DateOnly)].Accounts[row.stage]
			if n == 0 {
				continue
			}
			h := max(1, chartHeight*float64(n)/float64(top))
			y -= h
			c.Bars = append(c.Bars, bar{
				Class: row.class, X: float64(i)*step + barGap/2, Y: max(0, y), W: step - barGap, H: h,
				Title: fmt.Sprintf("%s: %s %s", at.Format(time.DateOnly), count(n), row.name),
			})
		}
	}
	return c
}
