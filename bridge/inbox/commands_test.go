package inbox

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"

	"postern/proxy"
)

func TestAnswersAreCountedByTheirTag(t *testing.T) {
	var emitted []string
	tracker := &commandTracker{observe: func(e proxy.Event) {
		c := e.(proxy.IMAPCommand)
		emitted = append(emitted, c.Command+" "+c.Result)
	}}
	for _, p := range []string{
		"T1 SELECT INBOX\r\n", "T2 UID SEARCH KEYWORD x\r\n", // both before an answer
		"T3 UID STORE 1,", "2,\n", // a line that imapclient writes in pieces
	} {
		tracker.sent([]byte(p))
	}
	for _, line := range []string{"T2 OK SEARCH done\r\n", "T1 no [LIMIT]\r\n", "T9 OK of nothing\r\n", "T3 BAD\n"} {
		tag, status, _ := parseStatus(bytes.TrimRight([]byte(line), "\r\n"))
		tracker.answered(tag, status)
	}
	tracker.sent([]byte("T4 UID EXPUNGE 1\r\n"))
	tracker.lost(io.EOF)
	tracker.sent([]byte("T5 EXPUNGE\r\n"))
	tracker.lost(fmt.Errorf("read: %w", net.ErrClosed)) // our own doing
	tracker.lost(io.EOF)                                // which is counted once
	want := []string{"SEARCH ok", "SELECT no", "STORE bad", "EXPUNGE lost"}
	if !slices.Equal(emitted, want) {
		t.Errorf("emitted %q, want %q", emitted, want)
	}
}
