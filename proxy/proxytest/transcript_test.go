package proxytest

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
)

func TestTranscriptPlaysBothPartsOfADialogue(t *testing.T) {
	client, server := Pipe(t)
	ServeTranscript(t, server, `
		S: * OK [CAPABILITY IMAP4rev1] ready
		C: a LOGIN * "p*s"
		S- * 1 FETCH (BODY[] {3}\r\n\x00\\
		S: *)
		C: <EOF>
		S: a OK done
		S: <EOF>
	`)
	Transcript(t, client, `
		S: \* OK [CAPABILITY *] ready
		C: a LOGIN alice "p*s"
		S: \* 1 FETCH (*{3}
		S- \x00\\*
		S: )
		C: <EOF>
		S: a OK *
		S: <EOF>
	`)
}

func TestTranscriptWorksOverTLSAndReadsNothingAhead(t *testing.T) {
	cert, pool := Cert(t)
	a, b := Pipe(t)
	client := tls.Client(a, &tls.Config{RootCAs: pool, ServerName: "localhost"})
	server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}})
	ServeTranscript(t, server, `
		S: one
		S: two
		S: <EOF>
	`)
	Transcript(t, client, `S: one`)
	rest, err := io.ReadAll(client)
	if got, want := string(rest), "two\r\n"; got != want || err != nil {
		t.Errorf("rest = %q, %v, want %q", got, err, want)
	}
}

func TestTranscriptNamesTheStepAndWhatCameInstead(t *testing.T) {
	for _, test := range []struct{ sent, script, want string }{
		{"-ERR no\r\n", "\n\tS: +OK*", `transcript line 2: S: +OK*: got "-ERR no"`},
		{"+OK\r\n", "S: <EOF>", `transcript line 1: S: <EOF>: got "+OK\r\n"`},
		{"+OK", "S: +OK", `transcript line 1: S: +OK: got "+OK", then: EOF`},
		{"+OK\n", "S: +OK", `transcript line 1: S: +OK: got "+OK\n", then: EOF`},
		{"", "S: +OK", `transcript line 1: S: +OK: got "", then: EOF`},
		{"ab", `S- ac`, `transcript line 1: S- ac: got "ab"`},
		{"a", `S- ac`, `transcript line 1: S- ac: got "a", then: unexpected EOF`},
		{"", "hello", "transcript line 1: hello: not a step: want S: S- C: or C-, a space and the text"},
		{"", "S:+OK", "transcript line 1: S:+OK: not a step: want S: S- C: or C-, a space and the text"},
		{"", `C- \x1`, `transcript line 1: C- \x1: \x without two hexadecimal digits`},
		{"\r\n", `S: \`, `transcript line 1: S: \: a backslash at the end`},
		{"", `C- \`, `transcript line 1: C- \: a backslash at the end`},
	} {
		client, server := net.Pipe()
		go func() {
			_, _ = io.WriteString(server, test.sent)
			_ = server.Close()
		}()
		err := play(client, test.script, "S")
		if err == nil || err.Error() != test.want {
			t.Errorf("play(%q) on %q = %v, want %s", test.script, test.sent, err, test.want)
		}
		_ = client.Close()
	}
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, line string
		want          bool
	}{
		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"+OK", "+OK", true},
		{"+OK", "+OK ", false},
		{"+OK*", "+OK", true},
		{"a*a", "a", false},
		{"a*b*c", "a-b-c", true},
		{"a*b*c", "a-c", false},
		{"a*bb*bc", "abbc", false},
		{`\* OK*`, "* OK", true},
		{`\* OK*`, "a OK", false},
		{`-ERR \[AUTH\] *`, "-ERR [AUTH] no", true},
		{`a\x20`, "a ", true},
		{`a\nb`, "a\nb", true},
		{`\\*`, `\anything`, true},
		{`a\*`, "a*", true},
		{`a\*`, "ab", false},
		{"**", "x", true},
	} {
		parts, err := compile(test.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := match(parts, []byte(test.line)); got != test.want {
			t.Errorf("match(%q, %q) = %v, want %v", test.pattern, test.line, got, test.want)
		}
	}
}
