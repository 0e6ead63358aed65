package wire_test

import (
	"fmt"
	"strings"

	"postern/proxy/wire"
)

// A server's replies are read line by line, whatever the TCP segments are.
func ExampleReplyReader() {
	r := wire.NewReplyReader(strings.NewReader("250-mail.example.org\r\n250 PIPELINING\r\n550 5.1.1 No such user\r\n"))
	for range 2 {
		reply, err := r.Reply()
		fmt.Println(reply.Code, reply.Positive(), reply.Lines(), err)
	}
	// Output:
	// 250 true [mail.example.org PIPELINING] <nil>
	// 550 false [5.1.1 No such user] <nil>
}

// A line of an IMAP client that ends with a literal continues after its octets.
func ExampleTrailingLiteral() {
	literal, ok := wire.TrailingLiteral([]byte("a1 LOGIN {5}\r\n"))
	fmt.Println(ok, literal.Size, literal.Sync)
	literal, ok = wire.TrailingLiteral([]byte("a1 LOGIN {5+}\r\n"))
	fmt.Println(ok, literal.Size, literal.Sync)
	// Output:
	// true 5 true
	// true 5 false
}

func ExampleParsePlain() {
	msg, err := wire.DecodeSASL([]byte("AGFsaWNlAHMzY3JldA=="))
	if err != nil {
		fmt.Println(err)
		return
	}
	authzid, user, password, err := wire.ParsePlain(msg)
	fmt.Printf("%q %q %q %v\n", authzid, user, password, err)
	// Output:
	// "" "alice" "s3cret" <nil>
}

// Excerpt cuts a server's text for a log line, but never within a character.
func ExampleExcerpt() {
	fmt.Println(wire.Excerpt("Postfach überfüllt", 10))
	// Output:
	// Postfach
}
