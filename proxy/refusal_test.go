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

// Criterion: a login that a limit of the guard for one client or account has refused counts as rate-limited, not as a failure of the backends, whatever the client is told.
func TestARefusalByTheGuardIsNoFailureOfTheBackends(t *testing.T) {
	for _, c := range []struct {
		reason  proxy.Reason
		err     error
		result  string
		outcome proxy.Outcome
	}{
		{proxy.Unavailable, io.EOF, proxy.ResultTemporary, proxy.OutcomeFailed},
		{proxy.Unavailable, &proxy.Decision{Bucket: "account_network"}, proxy.ResultThrottled, proxy.OutcomeThrottled},
		{proxy.TooManySessions, &proxy.Decision{Bucket: "sessions"}, proxy.ResultThrottled, proxy.OutcomeThrottled},
		{proxy.Throttled, &proxy.Decision{Bucket: "network"}, proxy.ResultThrottled, proxy.OutcomeThrottled},
		{proxy.Unavailable, &proxy.Decision{Bucket: "attempts", Shared: true}, proxy.ResultTemporary, proxy.OutcomeFailed}, // the backends are slow
		{proxy.Wrong, &proxy.Decision{Repeat: true}, proxy.ResultWrong, proxy.OutcomeWrong},
		{proxy.TooMany, errors.New("NO [LIMIT] of a backend"), proxy.ResultTemporary, proxy.OutcomeFailed},
	} {
		err := fmt.Errorf("log in: %w", proxy.NewRefusal(c.reason, c.err))
		if got := proxy.ResultOf(err); got != c.result {
			t.Errorf("%v: the result is %s, want %s", err, got, c.result)
		}
		if got, ok := proxy.OutcomeOf(err); got != c.outcome || !ok {
			t.Errorf("%v: the outcome is %d, want %d", err, got, c.outcome)
		}
	}
}
