package bridge

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"

	"postern/proxy"
)

func TestAnswersAreToldByTheirTag(t *testing.T) {
	var told []string
	w := &watch{tell: func(e proxy.Event) {
		c := e.(proxy.IMAPCommand)
		told = append(told, c.Command+" "+c.Result)
	}}
	for _, p := range []string{
		"T1 SELECT INBOX\r\n", "T2 UID SEARCH KEYWORD x\r\n", // both before an answer
		"T3 UID STORE 1,", "2,\n", // a line that imapclient writes in pieces
	} {
		w.sent([]byte(p))
	}
	for _, line := range []string{"T2 OK SEARCH done\r\n", "T1 no [LIMIT]\r\n", "T9 OK of nothing\r\n", "T3 BAD\n"} {
		tag, status, _ := parseStatus(bytes.TrimRight([]byte(line), "\r\n"))
		w.answered(tag, status)
	}
	w.sent([]byte("T4 UID EXPUNGE 1\r\n"))
	w.lost(io.EOF)
	w.sent([]byte("T5 EXPUNGE\r\n"))
	w.lost(fmt.Errorf("read: %w", net.ErrClosed)) // our own doing
	w.lost(io.EOF)                                // which is told once
	want := []string{"SEARCH ok", "SELECT no", "STORE bad", "EXPUNGE lost"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
