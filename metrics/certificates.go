package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Certificate is the validity of a name's certificate. Of two with the same Name
// and Source the second is not shown.
type Certificate struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
}

// certificates is a prometheus.Collector. The names come from the operator, so they
// are few.
type certificates func() []Certificate

var (
	certificateLabels = []string{"name", "source"}

	notAfter = prometheus.NewDesc(prefix+"_certificate_not_after_timestamp_seconds",
		"Expiry of the certificate served for a name.", certificateLabels, nil)
	notBefore = prometheus.NewDesc(prefix+"_certificate_not_before_timestamp_seconds",
		"Start of validity of the certificate served for a name.", certificateLabels, nil)
)

// Describe implements prometheus.Collector.
func (certificates) Describe(to chan<- *prometheus.Desc) {
	to <- notAfter
	to <- notBefore
}

// Collect implements prometheus.Collector.
func (list certificates) Collect(to chan<- prometheus.Metric) {
	seen := make(map[[2]string]bool)
	for _, c := range list() {
		name := strings.ToValidUTF8(c.Name, "?") // the scrape fails for a label that is no UTF-8
		if seen[[2]string{name, c.Source}] {
			continue
		}
		seen[[2]string{name, c.Source}] = true
		to <- prometheus.MustNewConstMetric(notAfter, prometheus.GaugeValue, float64(c.NotAfter.Unix()), name, c.Source)
		to <- prometheus.MustNewConstMetric(notBefore, prometheus.GaugeValue, float64(c.NotBefore.Unix()), name, c.Source)
	}
}

// certificateFindings is a prometheus.Collector of the number of findings by class.
type certificateFindings func() map[string]int

var findings = prometheus.NewDesc(prefix+"_certificate_findings",
	"Certificates with a fault, and names without one, by class.", []string{"class"}, nil)

// Describe implements prometheus.Collector.
func (certificateFindings) Describe(to chan<- *prometheus.Desc) { to <- findings }

// Collect implements prometheus.Collector.
func (counts certificateFindings) Collect(to chan<- prometheus.Metric) {
	for class, n := range counts() {
		to <- prometheus.MustNewConstMetric(findings, prometheus.GaugeValue, float64(n), class)
	}
}
