package oldserver

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestUIDLsOfAnOldServer(t *testing.T) {
	client, server := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, server, `
		S: +OK old
		C: USER alice
		S: +OK
		C: PASS top secret
		S: +OK
		C: UIDL
		S: +OK
		S: 1 7.1
		S: 2  7.2 x
		S: .
		C: QUIT
		S: +OK
	`)
	shown, err := UIDLs(t.Context(), client, "alice", proxy.NewSecret([]byte("top secret")))
	if err != nil || !slices.Equal(shown, []string{"7.1", "7.2"}) {
		t.Fatalf("%q, %v", shown, err)
	}
}

func TestOldServerThatRefuses(t *testing.T) {
	client, server := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, server, `
		S: +OK old
		C: USER alice
		S: +OK
		C: PASS secret
		S: -ERR no
	`)
	if _, err := UIDLs(t.Context(), client, "alice", proxy.NewSecret([]byte("secret"))); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	if _, err := UIDLs(t.Context(), client, "alice", proxy.NewSecret([]byte("a\r\nDELE 1"))); err == nil {
		t.Error("a line end in the password passes")
	}
}

func TestAnOldServerWithALineWithoutEnd(t *testing.T) {
	for _, length := range []int{maxReply, maxReply + 1} {
		client, server := proxytest.Pipe(t)
		go func() { _, _ = io.Copy(io.Discard, server) }()
		go func() { _, _ = io.WriteString(server, "-ERR "+strings.Repeat("x", length-len("-ERR \r\n"))+"\r\n") }()
		_, err := UIDLs(t.Context(), client, "alice", proxy.NewSecret([]byte("secret")))
		if long := errors.Is(err, errLongLine); err == nil || long != (length > maxReply) {
			t.Errorf("a line of %d octets: %v", length, err)
		}
	}
}
