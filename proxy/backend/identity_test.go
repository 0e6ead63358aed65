package backend

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/listen"
	"postern/proxy/wire"
)

var (
	customer   = netip.MustParseAddrPort("203.0.113.9:50001")
	customerV6 = netip.MustParseAddrPort("[2001:db8::9]:50001")
	frontDoor  = netip.MustParseAddrPort("198.51.100.7:993")
)

// withAddr returns l as it comes from a client at addr.
func withAddr(l *proxy.Login, addr netip.AddrPort) *proxy.Login {
	l.Client = proxy.Client{
		ID: "SESSION", Addr: addr, Local: frontDoor,
		TLS: &tls.ConnectionState{Version: tls.VersionTLS13, ServerName: "mail.customer.example"},
	}
	return l
}

// recordIdentified sets the Identity of s. The function it returns prints how
// often a login was identified, and how often it could not be.
func recordIdentified(s *Server, how Identity) func() string {
	var identified, not int
	s.Identity = how
	s.Identified = func(ok bool) {
		if ok {
			identified++
		} else {
			not++
		}
	}
	return func() string { return fmt.Sprint(identified, " ", not) }
}

const ourID = `("x-session-id" "SESSION" "x-originating-ip" "203.0.113.9" "x-originating-port" "50001" ` +
	`"x-connected-ip" "198.51.100.7" "x-connected-port" "993" "x-proxy-ttl" "5"`

// Criterion: an IMAP server that offers ID is told who the client is, without a
// round trip more; what clients say of x-... themselves is kept from it.
func TestLoginIMAPSendsTheClientsIdentity(t *testing.T) {
	for _, test := range []struct{ name, script string }{
		{"with the credentials", `
			S: * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] ready
			C: P1 ID ` + ourID + ` "name" "Mail" "version" "1.0 (x)")
			C: P2 AUTHENTICATE PLAIN *
			S: * ID ("name" "Dovecot")
			S: P1 OK ID completed.
			S: P2 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"refused", `
			S: * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] ready
			C: P1 ID *
			C: P2 AUTHENTICATE PLAIN *
			S: P1 BAD what
			S: P2 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"before LOGIN, and its answer has a list", `
			S: * OK [CAPABILITY IMAP4rev1 ID] ready
			C: P1 ID *
			C: P2 LOGIN "alice@example.org" "s3cret pass"
			S: * CAPABILITY IMAP4rev1 AUTH=PLAIN
			S: P1 OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ID completed.
			S: P2 OK in
			C: P3 CAPABILITY
			S: * CAPABILITY IMAP4rev1 IDLE
			S: P3 OK done`},
		{"before a continuation", `
			S: * OK [CAPABILITY IMAP4rev1 ID AUTH=PLAIN] ready
			C: P1 ID *
			C: P2 AUTHENTICATE PLAIN
			S: * ID NIL
			S: P1 OK ID completed.
			S: +
			C: ` + plain + `
			S: P2 OK [CAPABILITY IMAP4rev1 IDLE] in`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := startServer(t, proxy.IMAP, None, test.script)
			identified := recordIdentified(s, ID)
			l := withAddr(testLogin(account, password), customer)
			l.Hello.ID = map[string]string{
				"name": "Mail", "version": "1.0 (x)", "x-originating-ip": "10.0.0.1", "X-Session-ID": "x", "x-forward-y": "z",
				"os": "quo\"te", "vendor": strings.Repeat("x", 200), "os-version": "1\r\nA LOGOUT", "support-url": "ä",
			}
			conn, capabilities, err := s.LoginIMAP(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			if want := "IMAP4rev1 IDLE"; capabilities != want || identified() != "1 0" {
				t.Errorf("capabilities = %q, want %q; told %s", capabilities, want, identified())
			}
		})
	}
}

func TestLoginIMAPWithoutID(t *testing.T) {
	const script = `
		S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready
		C: P1 AUTHENTICATE PLAIN *
		S: P1 OK [CAPABILITY IMAP4rev1] in`
	for _, test := range []struct {
		script, identified string
		how                Identity
		client             netip.AddrPort
	}{
		{script, "0 1", ID, customer},
		{script, "0 0", ID, netip.AddrPort{}},
		{strings.Replace(script, "SASL-IR", "SASL-IR ID", 1), "0 0", Anonymous, customer},
	} {
		s, _ := startServer(t, proxy.IMAP, None, test.script)
		identified := recordIdentified(s, test.how)
		conn, _, err := s.LoginIMAP(t.Context(), withAddr(testLogin(account, password), test.client))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if identified() != test.identified {
			t.Errorf("%v for %v: told %s, want %s", test.how, test.client, identified(), test.identified)
		}
	}
}

func TestLoginIMAPMixesUpNoAnswers(t *testing.T) {
	for _, answer := range []string{
		"S: P2 OK in\nS: P1 OK ID completed.\nC: P3 LOGOUT\nS: <EOF>",
		"S: P1 OK ID completed.\nS: P1 OK ID completed.\nC: P3 LOGOUT\nS: <EOF>",
	} {
		s, _ := startServer(t, proxy.IMAP, None, `
			S: * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] ready
			C: P1 ID *
			C: P2 AUTHENTICATE PLAIN *
		`+answer)
		recordIdentified(s, ID)
		_, _, err := s.LoginIMAP(t.Context(), withAddr(testLogin(account, password), customer))
		checkRefusal(t, err, proxy.Unavailable)
	}
}

const postfix = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"

// Criterion: XCLIENT has only attributes that the server takes, as xtext, IPV6:
// before such addresses, in commands of at most 512 octets, ADDR last; then
// comes EHLO with the client's name, and the client's own credentials.
func TestLoginSMTPSendsTheClientsIdentity(t *testing.T) {
	long := strings.Repeat("h", 240)
	for _, test := range []struct {
		name, helo, offered, xclient string
		client                       netip.AddrPort
	}{
		{"all that Postfix takes", "client.example", postfix, `
			C: XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE] PROTO=ESMTP HELO=client.example PORT=50001 DESTADDR=198.51.100.7 DESTPORT=993 ADDR=203.0.113.9
			S: 220 mx.example ESMTP`, customer},
		{"IPv6, and only what is offered", "client.example", "xclient addr port", `
			C: XCLIENT PORT=50001 ADDR=IPV6:2001:db8::9
			S: 220 mx.example ESMTP`, customerV6},
		{"xtext", "a+b=c", "XCLIENT HELO ADDR", `
			C: XCLIENT HELO=a+2Bb+3Dc ADDR=203.0.113.9
			S: 220 mx.example ESMTP`, customer},
		{"a long name", long, postfix, `
			C: XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE] PROTO=ESMTP HELO=` + long + ` PORT=50001 DESTADDR=198.51.100.7 DESTPORT=993 ADDR=203.0.113.9
			S: 220 mx.example ESMTP`, customer},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen := startServer(t, proxy.Submission, None, strings.NewReplacer("client.example", test.helo).Replace(smtpOpening(test.offered, "AUTH LOGIN"))+test.xclient+`
				C: EHLO `+test.helo+`
				S: 250-mx.example
				S: 250-SIZE 10
				S: 250 AUTH PLAIN
				C: AUTH PLAIN `+plain+`
				S: 235 in`)
			identified := recordIdentified(s, XCLIENT)
			l := withAddr(testSMTPLogin(password, "SIZE 10"), test.client)
			l.Hello.Name = test.helo
			conn, err := s.LoginSMTP(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			if got, want := seen.String(), "dialed ok, login true"; got != want || identified() != "1 0" {
				t.Errorf("events: %s, want %s; told %s", got, want, identified())
			}
		})
	}
}

func TestXCLIENTIsSplitAndEndsWithADDR(t *testing.T) {
	name, boss := strings.Repeat("h", 240), strings.Repeat("b", 250)
	got := xclientCommands(strings.Fields(postfix), withAddr(testLogin(boss, ""), customer), name, true)
	want := []string{
		"XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE] PROTO=ESMTP HELO=" + name + " PORT=50001 DESTADDR=198.51.100.7 DESTPORT=993",
		"XCLIENT LOGIN=" + boss + " ADDR=203.0.113.9",
	}
	if !slices.Equal(got, want) {
		t.Errorf("commands %q, want %q", got, want)
	}
}

func TestLoginSMTPWithoutXCLIENT(t *testing.T) {
	for _, offered := range []string{"SIZE", "XCLIENT", "XCLIENT NAME LOGIN"} {
		s, _ := startServer(t, proxy.Submission, None, smtpOpening(offered, "AUTH PLAIN")+`
			C: AUTH PLAIN *
			S: 235 in`)
		identified := recordIdentified(s, XCLIENT)
		conn, err := s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password), customer))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if identified() != "0 1" {
			t.Errorf("%s: told %s, want 0 1", offered, identified())
		}
	}
}

func TestLoginSMTPSendsNoCredentialsAfterXCLIENTWasRefused(t *testing.T) {
	s, seen := startServer(t, proxy.Submission, None, smtpOpening(postfix, "AUTH PLAIN")+`
		C: XCLIENT *
		S: 550 5.7.0 Error: insufficient authorization
		C: <EOF>`)
	recordIdentified(s, XCLIENT)
	_, err := s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password), customer))
	checkRefusal(t, err, proxy.Unavailable)
	if got, want := seen.String(), "dialed greeting"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}

// Criterion: XCLIENT LOGIN goes out only after the IMAP server has accepted
// these very credentials for this connection; a wrong password sends none.
func TestLoginSMTPVouchesOnlyForWhatIMAPHasAccepted(t *testing.T) {
	const greeting = `
		S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready
		C: P1 AUTHENTICATE PLAIN ` + plain + `
		`
	right := greeting + `S: P1 OK [CAPABILITY IMAP4rev1] in
		C: Q LOGOUT
		S: * BYE
		S: <EOF>`
	imap, requests := startServer(t, proxy.IMAP, None, right)
	s, seen := startServer(t, proxy.Submission, None, smtpOpening(postfix, "SIZE 10")+`
		C: XCLIENT * LOGIN=alice@example.org ADDR=203.0.113.9
		S: 220 mx.example ESMTP
		C: EHLO client.example
		S: 250-mx.example
		S: 250 SIZE 10`)
	identified := recordIdentified(s, XCLIENTLogin)
	s.Verify = Verify(imap)
	conn, err := s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password, "SIZE 10"), customer))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got, want := requests.String()+"; "+seen.String(), "dialed ok, login true; dialed ok, login true"; got != want || identified() != "1 0" {
		t.Errorf("events: %s, want %s; told %s", got, want, identified())
	}

	for answer, want := range map[string]verdict{"S: P1 NO no": wrong, "S: P1 NO [UNAVAILABLE]": unavailable, "S: P1 BAD what": doubtful} {
		imap, _ = startServer(t, proxy.IMAP, None, greeting+answer+logoutScript(answer, "P2 LOGOUT"))
		s, seen = startServer(t, proxy.Submission, None) // nobody may connect
		recordIdentified(s, XCLIENTLogin)
		s.Verify = Verify(imap)
		_, err = s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password), customer))
		checkRefusal(t, err, want.reason)
		if r, ok := errors.AsType[*proxy.Refusal](err); ok && r.Doubtful != want.doubtful {
			t.Errorf("%s: doubtful = %v, want %v", answer, r.Doubtful, want.doubtful)
		}
		if got := seen.String(); got != "" {
			t.Errorf("events: %s, want none", got)
		}
	}
	imap.Address = "127.0.0.1:1" // tcpmux: nobody listens
	_, err = s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password), customer))
	checkRefusal(t, err, proxy.Unavailable)
	if _, ok := errors.AsType[*unsentError](err); ok {
		t.Errorf("the submission server is blamed for the IMAP server: %v", err)
	}
}

// Criterion: XCLIENT LOGIN never goes out without ADDR, nor without a check of
// the password.
func TestLoginSMTPVouchesForNobodyWithoutAnAddress(t *testing.T) {
	yes := func(context.Context, *proxy.Login) error { return nil }
	for _, test := range []struct {
		offered, account string
		client           netip.AddrPort
	}{
		{"XCLIENT NAME LOGIN", account, customer},
		{"XCLIENT NAME ADDR", account, customer},
		{postfix, account, netip.AddrPort{}},
		{postfix, strings.Repeat("ä", 50), customer},
	} {
		s, _ := startServer(t, proxy.Submission, None, smtpOpening(test.offered, "AUTH PLAIN")+`
			C: AUTH PLAIN *
			S: 235 in`)
		recordIdentified(s, XCLIENTLogin)
		s.Verify = yes
		l := withAddr(testSMTPLogin(password), test.client)
		l.Account = test.account
		conn, err := s.LoginSMTP(t.Context(), l)
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		_ = conn.Close()
	}
	s, seen := startServer(t, proxy.Submission, None)
	recordIdentified(s, XCLIENTLogin)
	_, err := s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password), customer))
	checkRefusal(t, err, proxy.Unavailable)
	if got := seen.String(); got != "" {
		t.Errorf("events: %s, want none", got)
	}
}

func TestProbeOfAServerThatChecksNoPasswordsOffersPLAIN(t *testing.T) {
	s, _ := startServer(t, proxy.Submission, None, "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250 "+postfix+`
		C: XCLIENT NAME=* ADDR=192.0.2.1
		S: 220 x
		C: EHLO *
		S: 250 x
		C: QUIT
		S: <EOF>`)
	recordIdentified(s, XCLIENTLogin)
	if _, err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(s.Offer().Mechanisms, ","), "PLAIN"; got != want {
		t.Errorf("Mechanisms = %s, want %s", got, want)
	}
}

// FuzzXCLIENT: whatever a server offers and a client says, each command is one
// line of at most 512 octets, ADDR comes last and once, and LOGIN has the octets
// of the account.
func FuzzXCLIENT(f *testing.F) {
	f.Add(postfix, "client.example", account)
	f.Add("xclient addr login", "a b\r\nXCLIENT LOGIN=boss", "boss ADDR=10.0.0.1")
	f.Fuzz(func(t *testing.T, line, helo, account string) {
		offered := xclientOffer([]string{line})
		l := withAddr(&proxy.Login{Account: account}, customer)
		commands := xclientCommands(offered, l, helo, true)
		for _, c := range commands {
			if len(c)+2 > maxXCLIENT || strings.ContainsFunc(c, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("command %q", c)
			}
			for _, attribute := range strings.Split(c, " ")[1:] {
				key, value, _ := strings.Cut(attribute, "=")
				if !slices.Contains(offered, key) || strings.ContainsRune(value, '=') {
					t.Fatalf("%q offers no %q", line, attribute)
				}
				if want := string(wire.AppendXtext(nil, account)); key == "LOGIN" && value != want && value != unavailableValue {
					t.Fatalf("LOGIN=%s, want %s", value, want)
				}
			}
		}
		all := strings.Join(commands, " ")
		if n := strings.Count(all, " ADDR="); slices.Contains(offered, "ADDR") && (n != 1 || !strings.HasSuffix(all, " ADDR=203.0.113.9")) {
			t.Fatalf("%d times ADDR: %q", n, all)
		}
	})
}

// Criterion: a server that expects PROXY headers gets one on each connection,
// before TLS, a probe that of a client outside.
func TestServerGetsAPROXYHeaderFirst(t *testing.T) {
	for how, version := range map[Identity]byte{ProxyV1: 1, ProxyV2: 2} {
		l := withAddr(testLogin(account, password), customer)
		for name, client := range map[string]proxy.Client{"login": l.Client, "probe": outsideClient()} {
			want, err := listen.Header(version, client)
			if err != nil {
				t.Fatal(err)
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &Server{Name: "main", Protocol: proxy.IMAP, Address: ln.Addr().String(), TLS: Implicit, Config: &tls.Config{ServerName: "x"}, Identity: how}
			done := make(chan error, 1)
			go func() {
				if name == "probe" {
					_, err := s.Probe(t.Context())
					done <- err
					return
				}
				_, _, err := s.LoginIMAP(t.Context(), l)
				done <- err
			}()
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want)+1)
			_, err = io.ReadFull(conn, got)
			if !bytes.Equal(got, append(want, 0x16)) || err != nil { // a record of TLS's handshake
				t.Errorf("%s, version %d: got %q, %v, want %q and TLS", name, version, got, err, want)
			}
			_, _ = conn.Close(), ln.Close()
			if err := <-done; err == nil {
				t.Error("no error of a server that is gone")
			}
		}
	}
}

func TestServerConnectsFromItsSourcesInTurn(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	s := &Server{Address: ln.Addr().String(), Source: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}}
	var got []string
	for range 4 {
		conn, err := s.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, conn.LocalAddr().(*net.TCPAddr).IP.String())
		_ = conn.Close()
	}
	slices.Sort(got)
	if want := "127.0.0.2 127.0.0.2 127.0.0.3 127.0.0.3"; strings.Join(got, " ") != want {
		t.Errorf("connected from %v, want %s", got, want)
	}
	s.Source = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	_, err = s.dial(t.Context())
	if fault, ok := errors.AsType[*ConnectError](err); !ok || fault.Fault != NoSource || fault.Text != "this machine has no such source address (EADDRNOTAVAIL): 192.0.2.1" {
		t.Errorf("dial = %v, want an error that names the address", err)
	}
}

func TestDialNamesWhatThisMachineLacks(t *testing.T) {
	for err, want := range map[error]string{
		os.NewSyscallError("socket", syscall.EMFILE):         "LimitNOFILE",
		os.NewSyscallError("socket", syscall.ENFILE):         "LimitNOFILE",
		os.NewSyscallError("connect", syscall.EADDRNOTAVAIL): "no local port is left",
		os.NewSyscallError("bind", syscall.EADDRNOTAVAIL):    "no such source address",
	} {
		err = &net.OpError{Op: "dial", Net: "tcp", Err: err}
		if got := withAdvice(err); !strings.Contains(got.Error(), want) || !errors.Is(got, err) || dialResult(got) != proxy.DialOther {
			t.Errorf("advised(%v) = %v, %s, want %q", err, got, dialResult(got), want)
		}
	}
	if err := os.NewSyscallError("connect", syscall.ECONNREFUSED); withAdvice(err) != err { //nolint:errorlint // the very same
		t.Errorf("advised(%v) = %v", err, withAdvice(err))
	}
}

// Criterion: a failed login lets the server close first: TIME_WAIT stays there.
func TestLoginLetsTheServerCloseFirst(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	first := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi\r\n")
		b := make([]byte, 1024)
		_, _ = conn.Read(b)
		_, _ = io.WriteString(conn, "P1 NO no\r\n")
		n, _ := conn.Read(b)
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Read(b[n:]); errors.Is(err, io.EOF) {
			first <- "Postern"
		} else {
			first <- string(b[:n])
		}
	}()
	s := &Server{Name: "main", Protocol: proxy.IMAP, Address: ln.Addr().String(), TLS: None}
	_, _, err = s.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Wrong)
	if got, want := <-first, "P2 LOGOUT\r\n"; got != want {
		t.Errorf("first was %q, want %q and then the server", got, want)
	}
}
