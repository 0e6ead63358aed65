package relay

import (
	"bytes"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

func TestParametersOfMissingExtensionsAreLeftOut(t *testing.T) {
	for _, test := range []struct{ args, lacks, want string }{
		{"FROM:<a@x> SIZE=5 BODY=8BITMIME RET=HDRS ENVID=x AUTH=<>", "DSN SIZE 8BITMIME", "FROM:<a@x> BODY=8BITMIME AUTH=<>"},
		{"TO:<b@x> NOTIFY=NEVER orcpt=rfc822;b@x", "DSN", "TO:<b@x>"},
		{`TO:<"> NOTIFY=NEVER"@x> notify=NEVER`, "DSN", `TO:<"> NOTIFY=NEVER"@x>`},
		{`TO:<"\"> NOTIFY=NEVER"@x> FOO`, "DSN", `TO:<"\"> NOTIFY=NEVER"@x> FOO`},
		{"FROM:<a@x> SIZE=5", "", "FROM:<a@x> SIZE=5"},
		{"FROM:<a@x>SIZE=5", "SIZE", "FROM:<a@x>SIZE=5"},
		{"FROM:a@x SIZE=5", "SIZE", "FROM:a@x SIZE=5"},
		{`FROM:<"a@x> SIZE=5`, "SIZE", `FROM:<"a@x> SIZE=5`},
		{"", "SIZE", ""},
	} {
		if got := string(withoutParams([]byte(test.args), strings.Fields(test.lacks))); got != test.want {
			t.Errorf("withoutParams(%q, %s) = %q, want %q", test.args, test.lacks, got, test.want)
		}
	}
}

// FuzzWithoutParams checks that the result is a part of the arguments, in their
// order, up to the end of the path at least, without the parameters of lacks.
func FuzzWithoutParams(f *testing.F) {
	f.Add("FROM:<a@x> SIZE=5 RET=HDRS")
	f.Add(`TO:<"\"> x"@y>  NOTIFY=NEVER  z`)
	f.Fuzz(func(t *testing.T, args string) {
		got := withoutParams([]byte(args), []string{"DSN", "SIZE"})
		end := pathEnd([]byte(args))
		if !bytes.HasPrefix(got, []byte(args[:end])) || len(got) > len(args) {
			t.Fatalf("%q of %q", got, args)
		}
		if again := withoutParams(bytes.Clone(got), []string{"DSN", "SIZE"}); !bytes.Equal(again, got) {
			t.Fatalf("%q, and then %q", got, again)
		}
	})
}

func TestSubmissionWithoutAnExtensionOfThisClient(t *testing.T) {
	s := &submissionFixture{done: make(chan error, 1)}
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	s.client, s.server = client, server
	s.session = &Submission{BackendName: "main", Conn: backend.(Upstream), Hostname: "postern.example",
		Extensions: append([]string{"DSN"}, announced...), Lacks: []string{"DSN", "CHUNKING", "PIPELINING"}}
	s.run(t.Context(), near)
	proxytest.ServeTranscript(t, server, `
		C: RSET
		S: 250 ok
		C: MAIL FROM:<a@x> SIZE=5
		S: 250 ok
		C: RCPT TO:<b@x>
		S: 250 ok
		C: QUIT
		S: 221 bye
		S: <EOF>`)
	proxytest.Transcript(t, client, `
		C: EHLO pc
		S: 250-postern.example
		S: 250-SIZE 1000000
		S: 250-8BITMIME
		S: 250 AUTH PLAIN LOGIN
		C: MAIL FROM:<a@x> RET=HDRS SIZE=5
		C: RCPT TO:<b@x> NOTIFY=NEVER
		S: 250 ok
		S: 250 ok
		C- BDAT 3 LAST\r\nx\r\n
		S: 503 *
		C: QUIT
		S: 221 bye
		S: <EOF>`)
	s.waitEnd(t, nil, 0)
}
