package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

// options holds every flag; each scenario reads those that concern it.
type options struct {
	scenario string
	label    string
	note     string
	addr     string
	proto    string
	plain    bool
	tls      *tls.Config

	concurrency int
	count       int
	duration    time.Duration
	timeout     time.Duration

	userFormat string
	users      int
	password   string

	mailbox  string
	dele     bool
	verify   bool
	pipeline int
	size     int
	per      int

	sessions   string
	settle     time.Duration
	active     bool
	streams    int
	streamUser string
	interval   time.Duration
	logins     bool
	resume     bool
	noGreet    bool
	pids       string
	dir        string
	arguments  []string
}

func parseOptions(name string, args []string) (*options, error) {
	o := &options{scenario: name}
	f := flag.NewFlagSet(name, flag.ExitOnError)
	f.StringVar(&o.label, "label", "", "name of the measured server, copied to the result")
	f.StringVar(&o.addr, "addr", "127.0.0.1:993", "address to measure, or to listen on")
	f.StringVar(&o.proto, "proto", "imap", "protocol: imap, pop3 or smtp")
	f.BoolVar(&o.plain, "plain", false, "no TLS (to measure a backend directly)")
	cafile := f.String("cafile", "", "PEM file with the CA to trust (default: no verification)")
	serverName := f.String("servername", "localhost", "server name to ask for and verify")
	curve := f.String("curve", "x25519", "key exchange offered: x25519, p256, mlkem or any")
	f.IntVar(&o.concurrency, "c", 8, "concurrent sessions")
	f.IntVar(&o.count, "n", 0, "stop after this many operations")
	f.DurationVar(&o.duration, "t", 0, "stop after this time")
	f.DurationVar(&o.timeout, "timeout", 60*time.Second, "limit on one read or write")
	f.StringVar(&o.userFormat, "user", "u%05d", "user name; a %d verb is replaced by a number below -users")
	f.IntVar(&o.users, "users", 1, "number of users to spread over")
	f.StringVar(&o.password, "pass", "pass", "password of every user")
	f.StringVar(&o.mailbox, "mailbox", "INBOX", "IMAP mailbox")
	f.BoolVar(&o.dele, "dele", false, "pop3-drain: delete what was retrieved")
	f.BoolVar(&o.verify, "verify", false, "check the digest that `mailload mailbox` put in each message")
	f.IntVar(&o.pipeline, "pipeline", 1, "pop3-drain: RETR commands in flight")
	f.IntVar(&o.size, "size", 4096, "message size in octets")
	f.IntVar(&o.per, "per", 10, "smtp-send: messages a session")
	f.StringVar(&o.sessions, "k", "2000", "idle: session counts to measure at, ascending, comma-separated")
	f.DurationVar(&o.settle, "settle", 3*time.Second, "idle: wait before memory is read")
	f.BoolVar(&o.active, "active", false, "idle: have each session move data before it idles")
	f.IntVar(&o.streams, "streams", 1, "bulk-latency: streaming sessions (0 for none)")
	f.StringVar(&o.streamUser, "streamuser", "big", "bulk-latency: user whose mailbox is streamed")
	f.DurationVar(&o.interval, "interval", 5*time.Millisecond, "bulk-latency: pause between NOOPs")
	f.BoolVar(&o.logins, "logins", false, "bulk-latency: measure logins of new sessions in place of NOOPs")
	f.BoolVar(&o.resume, "resume", false, "handshake: resume an earlier TLS session")
	f.BoolVar(&o.noGreet, "nogreet", false, "handshake: do not wait for the greeting")
	f.StringVar(&o.pids, "pids", "", "process ids or pid files of the measured server, comma-separated; descendants are included")
	f.StringVar(&o.note, "note", "", "copied to the result, to tell variants of a scenario apart")
	f.StringVar(&o.dir, "dir", "", "mailbox: maildir to create")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.arguments = f.Args()

	var err error
	o.tls, err = tlsConfig(*cafile, *serverName, *curve)
	return o, err
}

func tlsConfig(cafile, serverName, curve string) (*tls.Config, error) {
	c := &tls.Config{ServerName: serverName, MinVersion: tls.VersionTLS13}
	if cafile == "" {
		c.InsecureSkipVerify = true
	} else {
		pem, err := os.ReadFile(cafile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate found", cafile)
		}
	}
	switch curve {
	case "x25519":
		c.CurvePreferences = []tls.CurveID{tls.X25519}
	case "p256":
		c.CurvePreferences = []tls.CurveID{tls.CurveP256}
	case "mlkem":
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	case "any":
	default:
		return nil, fmt.Errorf("unknown -curve %q", curve)
	}
	return c, nil
}

// user returns the name of the i-th user, wrapping around at -users.
func (o *options) user(i int) string {
	if !strings.Contains(o.userFormat, "%") {
		return o.userFormat
	}
	return fmt.Sprintf(o.userFormat, i%o.users)
}
