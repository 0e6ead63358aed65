package service

import (
	"slices"
	"testing"

	"postern/metrics"
	"postern/metrics/ledger"
)

func TestHabitsOfMetricsAreThoseOfTheLedger(t *testing.T) {
	if got, want := metrics.Habits[:], ledger.Habits(); !slices.Equal(got, want) {
		t.Errorf("metrics have the habits %q, the ledger has %q", got, want)
	}
}

func TestStagesOfMetricsAreThoseOfTheLedger(t *testing.T) {
	if got, want := metrics.Stages[:], ledger.Stages(); !slices.Equal(got, want) {
		t.Errorf("metrics have the stages %q, the ledger has %q", got, want)
	}
}
