package proxytest

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestMboxServers(t *testing.T) {
	for _, name := range MboxServers() {
		t.Run(name, func(t *testing.T) {
			s := StartMboxServer(t, name, map[string]string{"alice": "secret", "bob": "bobs"})
			s.Deliver(t, "alice", []byte("Subject: one\n\nFrom here\n"), []byte("Subject: two\n\n.dot"))
			conn, err := net.Dial("tcp", s.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			in := bufio.NewReader(conn)
			answer := func(command string) string {
				if command != "" {
					_, _ = fmt.Fprintf(conn, "%s\r\n", command)
				}
				line, err := in.ReadString('\n')
				if err != nil || !strings.HasPrefix(line, "+OK") {
					t.Fatalf("%s: %q, %v", command, line, err)
				}
				return line
			}
			answer("")
			answer("USER alice")
			answer("PASS secret")
			if line := answer("STAT"); !strings.HasPrefix(line, "+OK 2 ") {
				t.Errorf("STAT: %q", line)
			}
			answer("QUIT")
		})
	}
}
