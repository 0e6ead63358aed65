package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"testing"
	"testing/iotest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// startSieve runs a session of ManageSieve between two TCP connections.
func startSieve(t *testing.T, ctx context.Context) *spliceFixture {
	t.Helper()
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	s := &spliceFixture{client: client, server: server, done: make(chan error, 1), conn: proxy.NewConn(near, proxy.Client{ID: "7"}, nil, 0)}
	session := &Sieve{BackendName: "main", Conn: backend.(Upstream)}
	go func() {
		err := session.Run(ctx, s.conn)
		_, _ = session.Close(), s.conn.Close()
		s.done <- err
	}()
	return s
}

// Criterion: After login ManageSieve is opaque, so that every extension works; UNAUTHENTICATE does not reach the server, and ends the session.
func TestSieveIsOpaqueButForUNAUTHENTICATE(t *testing.T) {
	s := startSieve(t, t.Context())
	proxytest.Transcript(t, s.client, `C- PUTSCRIPT "a" {37+}\r\n# unauthenticate\r\nkeep; # \xff\x00\r\nok\r\n\r\nX-NEW {3}\r\nabc\r\nNOOP\r\n  unauthenticate\r\nLISTSCRIPTS\r\n`)
	proxytest.ServeTranscript(t, s.server, `
		C: PUTSCRIPT "a" {37+}
		C: # unauthenticate
		C- keep; # \xff\x00\r\nok\r\n\r\n
		C: X-NEW {3}
		C: abc
		C: NOOP
		C-   unauthenticate
		C: <EOF>
	`)
	s.waitEnd(t, proxy.ErrForbidden)
}

// plainUnauthenticate is the rule of sieveWatch, said with a search.
var plainUnauthenticate = regexp.MustCompile(`(?i)(?:^|[\r\n])[\x00-\x20]*UNAUTHENTICATE[^0-9A-Za-z]`)

func TestSieveWatchFindsTheWordWhereALineBeginsWithIt(t *testing.T) {
	for octets, allowed := range map[string]int{
		"UNAUTHENTICATE\r\n":                           14,
		"unauthenticate \r\n":                          14,
		"NOOP\nUnAuthenticate\n":                       19,
		"NOOP\rUNAUTHENTICATE\r":                       19, // a server may end a line with CR
		"\t \x00UNAUTHENTICATE\"x\"":                   17,
		"UNAUTHENTICATE":                               14, // not complete: no server has the command yet
		"PUTSCRIPT \"a\" {16+}\r\nUNAUTHENTICATE\r\n":  35, // a server that knows no literal here
		"UNAUTHENTICATED users\r\nUNAUTHENTICATE2\r\n": -1,
		"# UNAUTHENTICATE\r\nUNAUTH\r\nENTICATE\r\n":   -1,
		"NOOP \"UNAUTHENTICATE\"\r\n":                  -1,
		"UNAUTHENTICAT\r\nE\r\n":                       -1,
		"UNAUTHENTICAUNAUTHENTICATE\r\n":               -1,
		"":                                             -1,
	} {
		if allowed < 0 {
			allowed = len(octets)
		}
		var out bytes.Buffer
		w := (&sieveWatch{}).toServer(&out)
		_, err := io.Copy(w, iotest.OneByteReader(bytes.NewReader([]byte(octets))))
		if got := out.String(); got != octets[:allowed] || errors.Is(err, proxy.ErrForbidden) != (allowed < len(octets)) {
			t.Errorf("of %q the server gets %q, %v", octets, got, err)
		}
	}
}

func FuzzSieveWatch(f *testing.F) {
	f.Add([]byte("NOOP\r\n unAuthenticate\r\n"), 3)
	f.Add([]byte("UNAUTHENTICATED\nUNAUTHENTICATE \n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		size = max(1, size&15)
		var out bytes.Buffer
		w := (&sieveWatch{}).toServer(&out)
		var err error
		for rest := in; len(rest) > 0 && err == nil; {
			n := min(size, len(rest))
			_, err = w.Write(rest[:n])
			rest = rest[n:]
		}
		want := len(in)
		if found := plainUnauthenticate.FindIndex(in); found != nil {
			want = found[1] - 1
		}
		if !bytes.Equal(out.Bytes(), in[:want]) || (err != nil) != (want < len(in)) {
			t.Errorf("of %q the server gets %q, %v, want %d octets", in, out.String(), err, want)
		}
	})
}

// Criterion: A ManageSieve client whose session an operator ends, or a restart, gets BYE behind a complete response, and never within a script.
func TestSieveSaysBYEBetweenTwoResponses(t *testing.T) {
	for received, want := range map[string]string{
		"OK\r\n":                                  "BYE \"Disconnected by an administrator (session 7)\"\r\n",
		"\"a\" ACTIVE\r\nOK \"done\"\r\n":         "BYE \"Disconnected by an administrator (session 7)\"\r\n",
		"NO (QUOTA) \"full\"\r\n":                 "BYE \"Disconnected by an administrator (session 7)\"\r\n",
		"{200}\r\nkeep;\r\n":                      "",
		"\"SASL\" \"PLAIN\"\r\n":                  "",
		"OK \"half":                               "",
		"OKAY\r\n":                                "",
		"BYE (TRYLATER) \"said it already\"\r\n":  "",
		"OK (TAG {3}\r\ntag) \"Done\"\r\nNO (X {": "",
	} {
		t.Run(received, func(t *testing.T) {
			t.Parallel()
			ctx, end := context.WithCancelCause(t.Context())
			s := startSieve(t, ctx)
			_, _ = io.WriteString(s.server, received)
			if _, err := io.ReadFull(s.client, make([]byte, len(received))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(quietTime + 50*time.Millisecond)
			cause := proxy.NewRefusal(proxy.Kicked, nil)
			end(cause)
			got, _ := io.ReadAll(s.client)
			if string(got) != want {
				t.Errorf("after %q the client gets %q, want %q", received, got, want)
			}
			_, _ = s.client.Close(), s.server.Close()
			s.waitEnd(t, cause)
		})
	}
}
