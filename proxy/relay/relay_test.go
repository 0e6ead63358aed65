package relay

import (
	"testing"

	"go.uber.org/goleak"
)

// No session leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
