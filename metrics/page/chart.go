package page

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
)

// The dimensions of a chart, in units of its drawing.
const (
	chartWidth  = 960.0
	chartHeight = 150.0
	barGap      = 2.0
)

// A chart shows a day as stacked bars. Logins and refusals have a chart each: beside
// ten thousand logins, a hundred wrong passwords would be invisible.
type chart struct {
	Title, Label string
	Caption      string // what a bar counts
	Max          string // at the top of the scale
	Half         string
	Empty        bool
	Bars         []bar
	Hours        []hour
	Keys         []total
}

type bar struct {
	Class      string
	X, Y, W, H float64
	Title      string
}

// An hour is a mark on the time axis.
type hour struct {
	X, Percent float64 // in the drawing, and of its width
	Text       string
}

// charts returns the charts of the page.
func charts(slots []slot, now time.Time) []chart {
	return []chart{
		newChart("Logins", slots, now, proxy.OutcomeOK),
		newChart("Refusals", slots, now, proxy.OutcomeWrong, proxy.OutcomeThrottled, proxy.OutcomeFailed, proxy.OutcomeForbidden),
	}
}

// newChart returns a chart of some outcomes.
func newChart(title string, slots []slot, now time.Time, of ...proxy.Outcome) chart {
	most, all := 0, 0
	for _, s := range slots {
		sum := 0
		for _, o := range of {
			sum += s[o]
		}
		most, all = max(most, sum), all+sum
	}
	top := scaleMax(most)
	c := chart{
		Title: title, Caption: title + " per 15 minutes", Max: count(top), Half: count(top / 2), Empty: all == 0,
		Label: fmt.Sprintf("%s in the last 24 hours: %s, at most %s in 15 minutes", title, count(all), count(most)),
	}
	for _, o := range of {
		c.Keys = append(c.Keys, total{Class: rows[o].class, Name: rows[o].name})
	}
	step := chartWidth / float64(len(slots))
	first := now.Truncate(slotTime).Add(-time.Duration(len(slots)-1) * slotTime)
	for i, s := range slots {
		at := first.Add(time.Duration(i) * slotTime)
		if at.Minute() == 0 && at.Hour()%6 == 0 && i < len(slots)*9/10 { // a mark at the right edge would be cut off
			c.Hours = append(c.Hours, hour{float64(i) * step, 100 * float64(i) / float64(len(slots)), at.Format("15:04")})
		}
		y := chartHeight
		for _, o := range of {
			if s[o] == 0 {
				continue
			}
			h := max(1, chartHeight*float64(s[o])/float64(top)) // one login is visible beside a million
			y -= h
			c.Bars = append(c.Bars, bar{
				Class: rows[o].class, X: float64(i)*step + barGap/2, Y: max(0, y), W: step - barGap, H: h,
				Title: fmt.Sprintf("%s: %s %s", at.Format("15:04"), count(s[o]), strings.ToLower(rows[o].name)),
			})
		}
	}
	return c
}

// scaleMax returns the lowest of 2, 4, 10, 20, 40, 100, ... that is not below n.
func scaleMax(n int) int {
	for power := 1; power <= math.MaxInt/10; power *= 10 {
		for _, digit := range []int{2, 4, 10} {
			if top := digit * power; top >= n {
				return top
			}
		}
	}
	return n
}

// count formats a number with a space at each thousand.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// percent formats a share.
func percent(share float64) string {
	switch {
	case share > 0 && share < 0.001:
		return "< 0.1 %"
	case share < 1 && share > 0.999:
		return "> 99.9 %"
	}
	return strconv.FormatFloat(share*100, 'f', 1, 64) + " %"
}

// since formats the time from t to now.
func since(now, t time.Time) string { return span(now.Sub(t)) }

// left formats the time from now to t.
func left(now, t time.Time) string {
	if d := t.Sub(now); d > 0 {
		return "in " + span(d)
	}
	return "expired " + span(now.Sub(t)) + " ago"
}

// span formats a duration in days, hours, minutes or seconds.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", int(d/day))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d/time.Hour))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d/time.Minute))
	}
	return fmt.Sprintf("%d seconds", max(0, int(d/time.Second)))
}
