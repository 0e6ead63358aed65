package memserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"go.uber.org/goleak"

	"postern/proxy/proxytest"
)

// start serves accounts alice and bob@demo.invalid until the end of the test,
// which fails when a goroutine is left then.
func startServer(t *testing.T, o Options) (s *Server, imapAddr, smtpAddr string) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	o.Accounts = []Account{{"alice", "secret"}, {"bob@demo.invalid", "pa ss\"word"}}
	s = New(o)
	served := make(chan error, 2)
	listen := func(serve func(net.Listener) error) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- serve(ln) }()
		return ln.Addr().String()
	}
	imapAddr, smtpAddr = listen(s.ServeIMAP), listen(s.ServeSMTP)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		for range 2 {
			if err := <-served; err != nil {
				t.Errorf("Serve = %v, want nil after Close", err)
			}
		}
	})
	return s, imapAddr, smtpAddr
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// login returns an imapclient of alice.
func login(t *testing.T, addr string) *imapclient.Client {
	t.Helper()
	c := imapclient.New(dial(t, addr), nil)
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Login("alice", "secret").Wait(); err != nil {
		t.Fatal(err)
	}
	return c
}

// inbox returns the messages of a user as IMAP shows them.
func inbox(t *testing.T, addr string) []string {
	t.Helper()
	c := login(t, addr)
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	var bodies []string
	messages, err := c.Fetch(imap.SeqSet{{Start: 1}}, &imap.FetchOptions{
		UID:         true,
		BodySection: []*imap.FetchItemBodySection{{Peek: true}},
	}).Collect()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		bodies = append(bodies, string(m.BodySection[0].Bytes))
	}
	return bodies
}

func TestIMAPAnswersWhatABridgeNeeds(t *testing.T) {
	s, addr, _ := startServer(t, Options{UIDValidity: 77})
	for i := range 5 {
		if err := s.Append("alice", fmt.Appendf(nil, "Subject: %d\r\n\r\n%s\r\n", i, strings.Repeat("x", i))); err != nil {
			t.Fatal(err)
		}
	}
	c := login(t, addr)
	for _, want := range []imap.Cap{imap.CapIMAP4rev1, imap.CapSASLIR, imap.CapLiteralPlus, imap.CapUIDPlus, imap.CapESearch, imap.CapMove, imap.CapIdle} {
		if !c.Caps().Has(want) {
			t.Errorf("capability %s is missing", want)
		}
	}
	selected, err := c.Select("INBOX", nil).Wait()
	if err != nil {
		t.Fatal(err)
	}
	if selected.UIDValidity != 77 || selected.UIDNext != 6 || selected.NumMessages != 5 {
		t.Errorf("SELECT = UIDVALIDITY %d, UIDNEXT %d, EXISTS %d, want 77, 6, 5", selected.UIDValidity, selected.UIDNext, selected.NumMessages)
	}
	if err := c.Store(imap.UIDSetNum(2, 4), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Silent: true, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.UIDExpunge(imap.UIDSetNum(2)).Close(); err != nil {
		t.Fatal(err)
	}
	listing, err := c.Fetch(imap.UIDSet{{Start: 1}}, &imap.FetchOptions{UID: true, RFC822Size: true}).Collect()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range listing {
		got = append(got, fmt.Sprintf("%d:%d", m.UID, m.RFC822Size))
	}
	// Message 4 is marked but was not named, so it stays.
	if want := []string{"1:16", "3:18", "4:19", "5:20"}; !slices.Equal(got, want) {
		t.Errorf("uid:size = %v, want %v", got, want)
	}
	found, err := c.UIDSearch(&imap.SearchCriteria{}, &imap.SearchOptions{ReturnAll: true}).Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := found.All.String(), "1,3:5"; got != want {
		t.Errorf("UID SEARCH RETURN (ALL) = %s, want %s", got, want)
	}
	if err := s.Renew("alice"); err != nil {
		t.Fatal(err)
	}
	selected, err = login(t, addr).Select("INBOX", nil).Wait()
	if err != nil {
		t.Fatal(err)
	}
	if selected.UIDValidity <= 77 || selected.NumMessages != 0 {
		t.Errorf("after Renew UIDVALIDITY %d, EXISTS %d, want another one and 0", selected.UIDValidity, selected.NumMessages)
	}
}

func TestMailArrivingDuringASessionIsAnnouncedBeforeItIsShown(t *testing.T) {
	s, addr, _ := startServer(t, Options{})
	add := func() {
		if err := s.Append("alice", []byte("Subject: new\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	add()
	conn := dial(t, addr)
	proxytest.Transcript(t, conn, `
		S: \* OK *
		C: a LOGIN alice secret
		S: a OK *
		C: b SELECT INBOX
		S: \* 1 EXISTS
		S: \* 0 RECENT
		S: \* OK [UNSEEN 1]*
		S: \* OK [UIDVALIDITY 1]*
		S: \* OK [UIDNEXT 2]*
		S: \* FLAGS *
		S: \* OK [PERMANENTFLAGS *
		S: b OK [READ-WRITE] *
	`)
	add()
	add()
	proxytest.Transcript(t, conn, `
		C: c UID FETCH 1:* (FLAGS)
		S: \* 1 FETCH (UID 1 FLAGS ())
		S: \* 2 EXISTS
		S: \* 3 EXISTS
		S: c OK *
		C: d UID FETCH 2:* (FLAGS)
		S: \* 2 FETCH (UID 2 FLAGS ())
		S: \* 3 FETCH (UID 3 FLAGS ())
		S: d OK *
		C: e UID FETCH 9:* (FLAGS)
		S: \* 3 FETCH (UID 3 FLAGS ())
		S: e OK *
	`)
}

func TestMessagesAreStoredUnchanged(t *testing.T) {
	s, addr, _ := startServer(t, Options{})
	messages := proxytest.HostileMessages()
	c := login(t, addr)
	for i, m := range messages {
		if i%2 == 0 {
			if err := s.Append("alice", m.Raw); err != nil {
				t.Fatal(err)
			}
			continue
		}
		cmd := c.Append("INBOX", int64(len(m.Raw)), nil)
		_, writeErr := cmd.Write(m.Raw)
		if err := errors.Join(writeErr, cmd.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := cmd.Wait(); err != nil {
			t.Fatalf("APPEND of %s: %v", m.Name, err)
		}
	}
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	whole := &imap.FetchItemBodySection{Peek: true}
	header := &imap.FetchItemBodySection{Peek: true, Specifier: imap.PartSpecifierHeader}
	text := &imap.FetchItemBodySection{Peek: true, Specifier: imap.PartSpecifierText}
	middle := &imap.FetchItemBodySection{Peek: true, Partial: &imap.SectionPartial{Offset: 2, Size: 5}}
	for i, m := range messages {
		got, err := c.Fetch(imap.UIDSetNum(imap.UID(i+1)), &imap.FetchOptions{
			UID: true, RFC822Size: true, Envelope: true, BodyStructure: &imap.FetchItemBodyStructure{Extended: true},
			BodySection: []*imap.FetchItemBodySection{whole, header, text, middle},
		}).Collect()
		if err != nil || len(got) != 1 {
			t.Fatalf("FETCH of %s: %d messages, %v", m.Name, len(got), err)
		}
		if size := got[0].RFC822Size; size != int64(len(m.Raw)) {
			t.Errorf("%s: RFC822.SIZE %d, want %d", m.Name, size, len(m.Raw))
		}
		if b := got[0].FindBodySection(whole); !bytes.Equal(b, m.Raw) {
			t.Errorf("%s: BODY[] is %.60q, want %.60q", m.Name, b, m.Raw)
		}
		if b := slices.Concat(got[0].FindBodySection(header), got[0].FindBodySection(text)); !bytes.Equal(b, m.Raw) {
			t.Errorf("%s: header and text are %.60q, want %.60q", m.Name, b, m.Raw)
		}
		if b, want := got[0].FindBodySection(middle), m.Raw[min(2, len(m.Raw)):min(7, len(m.Raw))]; !bytes.Equal(b, want) {
			t.Errorf("%s: BODY[]<2.5> is %q, want %q", m.Name, b, want)
		}
	}
}

func TestClientThatStopsReadingBlocksNoOther(t *testing.T) {
	s, addr, _ := startServer(t, Options{})
	if err := s.Append("alice", bytes.Repeat([]byte("x"), 32<<20)); err != nil {
		t.Fatal(err)
	}
	stuck := dial(t, addr)
	proxytest.Transcript(t, stuck, `
		S: \* OK *
		C: a LOGIN alice secret
		S: a OK *
		C: b SELECT INBOX
		C: c FETCH 1 BODY[]
		S: \* 1 EXISTS
	`)
	proxytest.Transcript(t, dial(t, addr), `
		S: \* OK *
		C: a LOGIN alice secret
		S: a OK *
		C: b STATUS INBOX (MESSAGES SIZE)
		S: \* STATUS INBOX (MESSAGES 1 SIZE 33554432)
		S: b OK *
	`)
}

func TestMailboxesAndFlagsAndSearch(t *testing.T) {
	s, addr, _ := startServer(t, Options{})
	for _, raw := range []string{
		"Subject: Hello World\r\nDate: Mon, 12 Jan 2026 09:00:00 +0000\r\n\r\nfirst body\r\n",
		"Subject: other\r\n\r\nsecond body\r\n",
		"Subject: third\r\n\r\nthird\r\n",
	} {
		if err := s.Append("alice", []byte(raw)); err != nil {
			t.Fatal(err)
		}
	}
	conn := dial(t, addr)
	proxytest.Transcript(t, conn, `
		S: \* OK *
		C: a LOGIN alice secret
		S: a OK *
		C: b LIST "" *
		S: \* LIST () "/" INBOX
		S: \* LIST (\\Sent) "/" "Sent"
		S: \* LIST (\\Trash) "/" "Trash"
		S: b OK *
		C: c CREATE Work
		S: c OK *
		C: d CREATE Work
		S: d NO [ALREADYEXISTS] *
		C: e RENAME Work Old
		S: e OK *
		C: f UNSUBSCRIBE Trash
		S: f OK *
		C: g LSUB "" %
		S: \* LSUB (\\Subscribed) "/" INBOX
		S: \* LSUB (\\Subscribed \\Sent) "/" "Sent"
		S: g OK *
		C: h DELETE Old
		S: h OK *
		C: i DELETE INBOX
		S: i NO *
		C: j SELECT nowhere
		S: j NO [NONEXISTENT] *
		C: k SELECT INBOX
		S: \* 3 EXISTS
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: k OK *
		C: l STORE 2:3 +FLAGS (\Seen $Label)
		S: \* 2 FETCH (FLAGS (\\Seen $Label))
		S: \* 3 FETCH (FLAGS (\\Seen $Label))
		S: l OK *
		C: m UID STORE 3 -FLAGS (\Seen)
		S: \* 3 FETCH (UID 3 FLAGS ($Label))
		S: m OK *
		C: n SEARCH KEYWORD $Label UNSEEN
		S: \* SEARCH 3
		S: n OK *
		C: o UID SEARCH OR SUBJECT hello BODY second
		S: \* SEARCH 1 2
		S: o OK *
		C: p SEARCH RETURN (MIN MAX COUNT) NOT TEXT third
		S: \* ESEARCH (TAG "p") MIN 1 MAX 2 COUNT 2
		S: p OK *
		C: q SEARCH SENTSINCE 1-Jan-2026 SENTBEFORE 1-Feb-2026 SINCE 1-Feb-2020
		S: \* SEARCH 1
		S: q OK *
		C: r SEARCH LARGER 1000
		S: \* SEARCH
		S: r OK *
		C: s UID COPY 1 Sent
		S: s OK [COPYUID 2 1 1] *
		C: t UID MOVE 2 Trash
		S: \* OK [COPYUID 3 2 1] *
		S: \* 2 EXPUNGE
		S: t OK *
		C: u UID COPY 9 Sent
		S: u OK COPY completed
		C: v FETCH 1 BODY[TEXT]
		S: \* 1 FETCH (BODY[TEXT] {12}
		S: first body
		S: )
		S: \* 1 FETCH (UID 1 FLAGS (\\Seen))
		S: v OK *
		C: w EXAMINE INBOX
		S: \* OK [CLOSED] *
		S: \* 2 EXISTS
		S: \* *
		S: \* OK [UNSEEN 2]*
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: w OK [READ-ONLY] *
		C: x STORE 1 FLAGS (\Deleted)
		S: x NO [READ-ONLY] *
	`)
}

func TestIMAPDialogue(t *testing.T) {
	_, addr, _ := startServer(t, Options{})
	proxytest.Transcript(t, dial(t, addr), `
		S: \* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- AUTH=PLAIN] *
		C: a LOGIN alice wrong
		S: a NO [AUTHENTICATIONFAILED] *
		C: b LOGIN bob@demo.invalid "pa ss\"word"
		S: b OK [CAPABILITY *UIDPLUS*APPENDLIMIT=67108864*] *
		C: c LOGOUT
		S: \* BYE *
		S: c OK *
		S: <EOF>
	`)
}

func TestSMTPTakesMailOnlyAfterAuthAndOnlyForItsAccounts(t *testing.T) {
	var from, accepted string
	var to []string
	_, imapAddr, smtpAddr := startServer(t, Options{Accepted: func(f string, r []string, raw []byte) {
		from, to, accepted = f, slices.Clone(r), string(raw)
	}})
	conn := dial(t, smtpAddr)
	proxytest.Transcript(t, conn, `
		S: 220 localhost *
		C: EHLO client.example
		S: 250-Hello client.example
		S: 250-PIPELINING
		S: 250-8BITMIME
		S: 250-ENHANCEDSTATUSCODES
		S: 250-CHUNKING
		S: 250-AUTH PLAIN LOGIN
		S: 250-SMTPUTF8
		S: 250-DSN
		S: 250-SIZE 67108864
		S: 250 LIMITS RCPTMAX=100
		C: MAIL FROM:<a@example.org>
		S: 530 5.7.0 *
		C: AUTH LOGIN
		S: 334 VXNlcm5hbWU6
		C: YWxpY2U=
		S: 334 UGFzc3dvcmQ6
		C: d3Jvbmc=
		S: 535 5.7.8 *
		C: AUTH PLAIN AGFsaWNlAHdyb25n
		S: 535 5.7.8 *
		C: AUTH LOGIN YWxpY2U=
		S: 334 UGFzc3dvcmQ6
		C: c2VjcmV0
		S: 235 2.0.0 *
		C: MAIL FROM:<a@example.org> BODY=8BITMIME
		S: 250 *
		C: RCPT TO:<stranger@example.org>
		S: 550 5.1.1 *
		C: RCPT TO:<alice@demo.invalid>
		S: 250 *
		C: RCPT TO:<alice@example.net>
		S: 250 *
		C: DATA
		S: 354 *
		C: Subject: dots
		C:
		C: ..
		C: ..two
		C- bare\nnul\x00 8bit\xff cr\r.\r\n.\r\n
		S: 250 *
		C: QUIT
		S: 221 *
		S: <EOF>
	`)
	want := "Subject: dots\r\n\r\n.\r\n.two\r\nbare\nnul\x00 8bit\xff cr\r.\r\n"
	if got := inbox(t, imapAddr); !slices.Equal(got, []string{want}) {
		t.Errorf("inbox = %q, want %q once", got, want)
	}
	if from != "a@example.org" || !slices.Equal(to, []string{"alice@demo.invalid", "alice@example.net"}) || accepted != want {
		t.Errorf("Accepted(%q, %q, %q)", from, to, accepted)
	}
}

func TestSMTPTakesChunksAndLinesOfAMegabyte(t *testing.T) {
	_, imapAddr, smtpAddr := startServer(t, Options{})
	line := strings.Repeat("x", 1<<20) + "\r\n"
	conn := dial(t, smtpAddr)
	proxytest.Transcript(t, conn, `
		S: 220 *
		C: HELO x
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
		S: 235 *
		C: MAIL FROM:<>
		S: 250 *
		C: RCPT TO:<alice@x>
		S: 250 *
		C: BDAT 8
		C- A: b\r\n\r\n
		C: BDAT 0 LAST
		S: 250 *
		S: 250 *
		C: MAIL FROM:<>
		S: 250 *
		C: RCPT TO:<alice@x>
		S: 250 *
		C: DATA
		S: 354 *
	`)
	if _, err := io.WriteString(conn, "A: b\r\n\r\n"+line+".\r\n"); err != nil {
		t.Fatal(err)
	}
	proxytest.Transcript(t, conn, `S: 250 *`)
	if got := inbox(t, imapAddr); !slices.Equal(got, []string{"A: b\r\n\r\n", "A: b\r\n\r\n" + line}) {
		t.Errorf("got %.40q, want the chunked one and the long line", got)
	}
}

func TestSTARTTLSIsOfferedByBoth(t *testing.T) {
	cert, pool := proxytest.Cert(t)
	_, imapAddr, smtpAddr := startServer(t, Options{TLS: proxytest.ServerTLS(cert)})
	conn := dial(t, imapAddr)
	proxytest.Transcript(t, conn, `
		S: \* OK [CAPABILITY * STARTTLS *] *
		C: a STARTTLS
		S: a OK *
	`)
	proxytest.Transcript(t, proxytest.ClientTLS(conn, pool), `
		C: b LOGIN alice secret
		S: b OK *
	`)
	conn = dial(t, smtpAddr)
	proxytest.Transcript(t, conn, `
		S: 220 *
		C: EHLO x
		S: 250-Hello *
		S: 250-PIPELINING
		S: 250-8BITMIME
		S: 250-ENHANCEDSTATUSCODES
		S: 250-CHUNKING
		S: 250-STARTTLS
		S: 250-AUTH *
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250 *
		C: STARTTLS
		S: 220 *
	`)
	proxytest.Transcript(t, proxytest.ClientTLS(conn, pool), `
		C: HELO x
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
		S: 235 *
	`)
}

func TestCloseEndsAllSessions(t *testing.T) {
	s, imapAddr, smtpAddr := startServer(t, Options{})
	idle, data, fresh := dial(t, imapAddr), dial(t, smtpAddr), dial(t, imapAddr)
	proxytest.Transcript(t, idle, `
		S: \* OK *
		C: a LOGIN alice secret
		S: a OK *
		C: b SELECT INBOX
		S: \* 0 EXISTS
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: \* *
		S: b OK *
		C: c IDLE
		S: + idling
	`)
	proxytest.Transcript(t, data, `
		S: 220 *
		C: EHLO x
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
		S: 235 *
		C: MAIL FROM:<>
		S: 250 *
		C: RCPT TO:<alice@x>
		S: 250 *
		C: BDAT 100
		C: half
	`)
	if err := s.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	for _, conn := range []net.Conn{idle, data, fresh} {
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("read after Close = %v", err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ServeIMAP(ln); err == nil {
		t.Error("ServeIMAP after Close = nil, want an error")
	}
}

func TestSamplesAreMailWithCRLF(t *testing.T) {
	all := Samples()
	if len(all) < 4 {
		t.Fatalf("%d samples, want 4 or more", len(all))
	}
	for i, raw := range all {
		if !bytes.HasSuffix(raw, []byte("\r\n")) || bytes.Count(raw, []byte("\n")) != bytes.Count(raw, []byte("\r\n")) || bytes.Contains(raw, []byte("\r\r")) {
			t.Errorf("sample %d has other line ends than CRLF", i)
		}
		if header, _, ok := bytes.Cut(raw, []byte("\r\n\r\n")); !ok || !bytes.Contains(header, []byte("\r\nSubject: ")) {
			t.Errorf("sample %d has no subject or no end of its header", i)
		}
	}
}
