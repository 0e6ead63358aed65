// Command mailload measures mail front proxies: it drives IMAP, POP3 and SMTP
// submission sessions against one address, checks what it receives, and
// prints one line of JSON per measurement. Given the process ids of the
// measured server it also reports that server's own CPU time and memory.
package main

import (
	"fmt"
	"os"
	"sort"
)

// A scenario is one measurement, or one of the helpers a measurement needs.
type scenario struct {
	summary string
	run     func(*options) error
}

var scenarios = map[string]scenario{
	"handshake":    {"TLS handshakes up to the greeting (-resume: resumed)", runHandshake},
	"login":        {"connect, log in, log out (-proto imap|pop3|smtp)", runLogin},
	"pop3-poll":    {"log in, STAT, UIDL, LIST, QUIT", runPOP3Poll},
	"pop3-drain":   {"log in, LIST, RETR every message, QUIT (-dele: delete them)", runPOP3Drain},
	"imap-fetch":   {"log in, SELECT, FETCH 1:* BODY.PEEK[]", runIMAPFetch},
	"smtp-send":    {"log in and send -per messages of -size bytes a session", runSMTPSend},
	"idle":         {"open -k logged-in sessions and report the server's memory", runIdle},
	"half-open":    {"open -k connections that stop after the ClientHello and report the server's memory", runHalfOpen},
	"bulk-latency": {"NOOP round trips (-logins: logins) while -streams other sessions stream", runBulkLatency},
	"mailbox":      {"helper: write a maildir of -n messages of -size bytes to -dir", runMailbox},
	"sink":         {"helper: an SMTP server that accepts AUTH PLAIN and discards mail", runSink},
	"table":        {"helper: medians of the JSON lines in the files named, beside each other", runTable},
}

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	s, ok := scenarios[os.Args[1]]
	if !ok {
		usage()
	}
	opt, err := parseOptions(os.Args[1], os.Args[2:])
	if err == nil {
		err = s.run(opt)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "mailload %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: mailload SCENARIO [flags]   (mailload SCENARIO -h lists the flags)")
	names := make([]string, 0, len(scenarios))
	for name := range scenarios {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(os.Stderr, "  %-13s %s\n", name, scenarios[name].summary)
	}
	os.Exit(2)
}
