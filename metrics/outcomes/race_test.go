//go:build race

package outcomes

// scale divides the size of what TestAllOfItIsBounded fills. The race detector takes 20
// times as long, and its memory says nothing about that of Postern.
const scale = 50
