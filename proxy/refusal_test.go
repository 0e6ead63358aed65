package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"postern/proxy"
)

// Criterion: Each reason of a refusal has one word in the log, one result in metrics and one row of the status page, and reasons of one result share one row.
func TestEachReasonHasItsWordResultAndOutcome(t *testing.T) {
	words := make(map[string]bool)
	rows := map[string]proxy.Outcome{proxy.ResultOK: proxy.OutcomeOK}
	for _, reason := range proxy.Reasons() {
		err := fmt.Errorf("log in: %w", proxy.NewRefusal(reason, io.EOF))
		word, result := reason.String(), proxy.ResultOf(err)
		outcome, answered := proxy.OutcomeOf(err)
		if word == "" || word == "unknown" || words[word] {
			t.Errorf("reason %d has the word %q", reason, word)
		}
		words[word] = true
		if !slices.Contains(proxy.Results(), result) || result == proxy.ResultOK || result == proxy.ResultClientAbort {
			t.Errorf("%s has the result %q", reason, result)
		}
		if row, ok := rows[result]; !answered || ok && row != outcome {
			t.Errorf("%s: result %s is in row %d, elsewhere in row %d", reason, result, outcome, row)
		}
		rows[result] = outcome
		if temporary := outcome == proxy.OutcomeFailed || outcome == proxy.OutcomeThrottled; temporary != reason.Temporary() {
			t.Errorf("%s is in row %d, which confuses temporary and permanent", reason, outcome)
		}
	}
	for _, err := range []error{io.EOF, errors.New("no refusal"), proxy.NewRefusal(0, nil)} {
		if _, answered := proxy.OutcomeOf(err); answered || proxy.ResultOf(err) != proxy.ResultClientAbort {
			t.Errorf("%v counts as an answer: %s", err, proxy.ResultOf(err))
		}
	}
}
