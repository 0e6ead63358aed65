//go:build !race

package outcomes

// scale divides the size of what TestAllOfItIsBounded fills.
const scale = 1
