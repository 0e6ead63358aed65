//go:build race

package bridge

// raceEnabled: the race detector makes a sync.Pool drop one of four values, which are
// allocated again.
const raceEnabled = true
