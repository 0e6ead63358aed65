//go:build race

package guard_test

// The race detector makes the simulation ten times slower and cannot find a race in one
// goroutine. So there are a tenth of the guesses, from a tenth of the bots, with the same
// bounds, and no other models.
const race, thin = true, 10
