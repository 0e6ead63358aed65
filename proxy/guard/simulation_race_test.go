//go:build race

package guard_test

// The race detector makes the simulation ten times slower and has nothing to
// find in one goroutine. So there is a tenth of the guessing, by a tenth of the
// bots, the bounds are the same, and the models of others rest.
const race, thin = true, 10
