//go:build !race

package guard_test

const race, thin = false, 1
