package guard

import (
	"errors"

	"postern/proxy"
)

// An outcome is what is known about an attempt's password when the attempt ends.
type outcome uint8

const (
	untried   outcome = iota // the backend did not get the password, or did not check it
	right                    // the backend accepted the password
	wrong                    // the backend called the password wrong
	suspended                // the account may not log in; the backend may not have checked the password
	doubtful                 // the answer is temporary; the backend may have checked the password
)

// isGuess reports whether the attempt costs a guess.
func (o outcome) isGuess() bool { return o == wrong || o == suspended || o == doubtful }

func outcomeOf(err error) outcome {
	if err == nil {
		return right
	}
	switch r := refusal(err); {
	case r == nil:
		return untried
	case r.Verified && r.Reason == proxy.Suspended:
		return untried // a right password in the wrong place costs nothing, and makes no network known-good
	case r.Verified:
		return right
	case r.Doubtful:
		return doubtful
	case r.Reason == proxy.Wrong:
		return wrong
	case r.Reason == proxy.Suspended:
		return suspended
	}
	return untried
}

// An inFlight counts the attempts under way that have one requirement.
type inFlight struct {
	running    int32
	reserved   int32       // tokens
	tag        tag         // of the first attempt
	completion *completion // of the next attempt that ends; nil: no attempt waits for one
}

// A completion tells the attempts that wait for another attempt that it has ended.
type completion struct {
	done    chan struct{} // closed at the end
	outcome outcome       // valid once done is closed
	waiting int
}

// maxWaiting bounds how many attempts wait for one completion, and wake at once. It is
// more than the connections of a network that are not logged in, by default.
const maxWaiting = 512

// An inFlightTable has the attempts under way, by the key of their requirements. The
// Guard's lock protects it.
type inFlightTable map[key]inFlight

// begin counts an attempt. If reserve is set it reserves the required tokens.
func (f inFlightTable) begin(d *demand, t tag, reserve bool) {
	for i := range d.all() {
		r := &d.requirements[i]
		one := f[r.key]
		if one.running == 0 {
			one.tag = t
		}
		one.running++
		if reserve && r.rate.Burst > 0 {
			one.reserved++
		}
		f[r.key] = one
	}
}

// end undoes begin, and wakes the attempts that wait for the end.
func (f inFlightTable) end(d *demand, reserved bool, o outcome) {
	for i := range d.all() {
		r := &d.requirements[i]
		one := f[r.key]
		one.running--
		if reserved && r.rate.Burst > 0 {
			one.reserved--
		}
		if one.completion != nil {
			one.completion.outcome = o
			close(one.completion.done)
			one.completion = nil
		}
		if one.running == 0 {
			delete(f, r.key)
			continue
		}
		f[r.key] = one
	}
}

// saturated returns the first requirement of d that is at its limit, or nil.
func (f inFlightTable) saturated(d *demand) *requirement {
	for i := range d.all() {
		r := &d.requirements[i]
		if r.limit > 0 && f[r.key].running >= r.limit {
			return r
		}
	}
	return nil
}

// completion returns the next completion of an attempt with requirement r, or nil if
// too many attempts already wait for it.
func (f inFlightTable) completion(r *requirement) *completion {
	one := f[r.key]
	if one.completion == nil {
		one.completion = &completion{done: make(chan struct{})}
		f[r.key] = one
	}
	if one.completion.waiting >= maxWaiting {
		return nil
	}
	one.completion.waiting++
	return one.completion
}

// refusal returns the first proxy.Refusal in err's tree, or nil.
func refusal(err error) *proxy.Refusal {
	r, _ := errors.AsType[*proxy.Refusal](err)
	return r
}
