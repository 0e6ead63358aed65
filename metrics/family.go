package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// other is the value of a label that none of its values fits.
const other = "other"

// none is the value of a label that has no meaning for an event.
const none = "none"

// A dimension is one label, or several that belong together, and all values
// they can have.
type dimension struct {
	labels []string
	values [][]string // one for each label
}

// label is a dimension of one label.
func label(name string, values ...string) dimension {
	d := dimension{labels: []string{name}}
	for _, v := range values {
		d.values = append(d.values, []string{v})
	}
	return d
}

// A family is all series of one name. They exist from the start, at 0, and no
// value that is not in a dimension ever becomes one: nothing that clients send
// can add a series.
type family[M any] struct {
	dimensions []dimension
	with       func(values ...string) M
	known      map[series]M // the handles
}

// series are the values of all labels; not more than four are in use.
type series [4]string

func newFamily[M any](with func(...string) M, dimensions []dimension) *family[M] {
	f := &family[M]{dimensions: dimensions, with: with, known: make(map[series]M)}
	f.create(nil, dimensions)
	return f
}

// create makes the product of the dimensions.
func (f *family[M]) create(begun []string, rest []dimension) {
	if len(rest) == 0 {
		var k series
		copy(k[:], begun)
		f.known[k] = f.with(begun...)
		return
	}
	for _, values := range rest[0].values {
		f.create(slices.Concat(begun, values), rest[1:])
	}
}

// of returns the series with values.
func (f *family[M]) of(values ...string) M {
	var k series
	copy(k[:], values)
	if m, ok := f.known[k]; ok {
		return m
	}
	return f.with(f.closed(k)...)
}

// closed replaces what is not in a dimension by other.
func (f *family[M]) closed(k series) []string {
	values := k[:0]
	rest := k[:]
	for _, d := range f.dimensions {
		n := len(d.labels)
		if !slices.ContainsFunc(d.values, func(v []string) bool { return slices.Equal(v, rest[:n]) }) {
			for i := range n {
				rest[i] = other
			}
		}
		values, rest = append(values, rest[:n]...), rest[n:]
	}
	return values
}

type (
	counter   = *family[prometheus.Counter]
	gauge     = *family[prometheus.Gauge]
	histogram = *family[prometheus.Observer]
)

func labelsOf(dimensions []dimension) (all []string) {
	for _, d := range dimensions {
		all = append(all, d.labels...)
	}
	return all
}

// A registry makes families, and registers them.
type registry struct{ *prometheus.Registry }

func (r registry) counter(name, help string, dimensions ...dimension) counter {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: prefix, Name: name, Help: help}, labelsOf(dimensions))
	r.MustRegister(v)
	return newFamily(v.WithLabelValues, dimensions)
}

func (r registry) gauge(name, help string, dimensions ...dimension) gauge {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: prefix, Name: name, Help: help}, labelsOf(dimensions))
	r.MustRegister(v)
	return newFamily(v.WithLabelValues, dimensions)
}

func (r registry) histogram(name, help string, buckets []float64, dimensions ...dimension) histogram {
	v := prometheus.NewHistogramVec(
		prometheus.HistogramOpts{Namespace: prefix, Name: name, Help: help, Buckets: buckets}, labelsOf(dimensions))
	r.MustRegister(v)
	return newFamily(v.WithLabelValues, dimensions)
}
