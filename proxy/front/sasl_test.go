package front

import (
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

const token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="

// saslDialogues are the dialogues of a SASL exchange, by protocol.
var saslDialogues = []struct {
	protocol, greeting  string
	command, prompt     string
	accepted            string
	wrong, away, broken string
	again, answered     string
}{
	{
		proxy.IMAP, `S: \* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=OAUTHBEARER] *`,
		"a AUTHENTICATE ", "+ ", "a OK *",
		"a NO [AUTHENTICATIONFAILED] Wrong user name or password (session *)", "a NO [UNAVAILABLE] *",
		"a BAD Wait *\nS: \\* BYE Wait *", "n NOOP", "n OK *",
	}, {
		proxy.POP3, greetingPOP3 + "\nC: AUTH\nS: +OK *\nS: PLAIN\nS: LOGIN\nS: XOAUTH2\nS: OAUTHBEARER\nS: .",
		"AUTH ", "+ ", "+OK Logged in",
		"-ERR [AUTH] Wrong user name or password (session *)", "-ERR [SYS/TEMP] *",
		"-ERR Wait *", "STAT", "-ERR Log in first",
	}, {
		proxy.Submission, greetingSMTP + strings.Replace(ehlo, "PLAIN LOGIN", "PLAIN LOGIN XOAUTH2 OAUTHBEARER", 1),
		"AUTH ", "334 ", "235 2.7.0 *",
		"535 5.7.8 Wrong user name or password (session *)", "454 4.7.0 *",
		"503 5.5.0 Wait *", "NOOP", "250 2.0.0 OK",
	},
}

// bearers are the OAuth mechanisms.
var bearers = []struct {
	name, via string
	message   func(dst []byte, user string, token []byte) []byte
}{
	{"XOAUTH2", proxy.ViaXOAuth2, wire.AppendXOAUTH2},
	{"OAUTHBEARER", proxy.ViaOAuthBearer, wire.AppendOAuthBearer},
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// Criterion: XOAUTH2 and OAUTHBEARER bring user and token in all three protocols, with and without an initial response, tokens up to 12 KiB.
func TestBearerTokensLogIn(t *testing.T) {
	for _, p := range saslDialogues {
		for _, m := range bearers {
			for _, token := range []string{token, strings.Repeat("t", 12<<10)} {
				msg := string(m.message(nil, "alice,a=b@example.org", []byte(token)))
				for _, script := range []string{
					"C: " + p.command + m.name + " " + msg,
					"C: " + p.command + strings.ToLower(m.name) + "\nS- " + p.prompt + `\r\n` + "\nC: " + msg,
				} {
					f := startInTLSWithOffer(t, p.protocol, 0, oauthOffer)
					f.answer["alice,a=b@example.org"] = nil
					f.play(t, p.greeting+"\n"+script+"\nS: "+p.accepted+"\nC: hello\nS: session: hello")
					l := f.wantLogin(t, m.via, "alice,a=b@example.org", token)
					if !slices.Equal(l.Offer.Mechanisms, oauthOffer.Mechanisms) {
						t.Errorf("%s: offer %q", p.protocol, l.Offer.Mechanisms)
					}
				}
			}
		}
	}
}

// Criterion: A token that is wrong has a failure challenge, which the client answers before the refusal: RFC 7628 section 3.2.3.
func TestBearerTokenThatIsWrongHasAChallenge(t *testing.T) {
	const received = `{"status":"invalid_token","scope":"mail","openid-configuration":"https://example.org/.well-known/openid-configuration"}`
	for _, p := range saslDialogues {
		for _, m := range bearers {
			for _, test := range []struct{ user, challenge, answer string }{
				{"bob", `{"status":"invalid_token"}`, "AQ=="},
				{"bob", `{"status":"invalid_token"}`, ""},
				{"carol", received, "*"},
				{"dave", `{"status":"invalid_token"}`, "AQ=="},
				{"", `{"status":"invalid_request"}`, "AQ=="},
			} {
				f := startInTLSWithOffer(t, p.protocol, 0, oauthOffer)
				f.answer["carol"] = &proxy.Refusal{Reason: proxy.Wrong, Challenge: []byte(received)}
				f.answer["dave"] = &proxy.Refusal{Reason: proxy.Wrong, Challenge: []byte(strings.Repeat("x", 9000))}
				f.play(t, p.greeting+`
					C: `+p.command+m.name+" "+string(m.message(nil, test.user, []byte(token)))+`
					S: `+p.prompt+b64(test.challenge)+`
					C: `+test.answer+`
					S: `+p.wrong+`
					C: `+p.again+`
					S: `+p.answered+`
				`)
			}
		}
	}
}

// Criterion: A temporary refusal of a token has no challenge: clients throw the token away over one.
func TestBearerTokenThatCannotBeCheckedHasNoChallenge(t *testing.T) {
	for _, p := range saslDialogues {
		for _, m := range bearers {
			f := startInTLSWithOffer(t, p.protocol, 0, oauthOffer)
			f.answer["bob"] = proxy.NewRefusal(proxy.Unavailable, errors.New("dial"))
			login := p.command + m.name + " " + string(m.message(nil, "bob", []byte(token)))
			f.play(t, p.greeting+`
				C: `+login+`
				S: `+p.away+`
				C: `+login+`
				S: `+p.away+`
				C: `+p.again+`
				S: `+p.answered+`
			`)
		}
	}
}

func TestPasswordsHaveNoChallenge(t *testing.T) {
	for _, p := range saslDialogues {
		f := startInTLSWithOffer(t, p.protocol, 0, oauthOffer)
		f.answer["bob"] = &proxy.Refusal{Reason: proxy.Wrong, Challenge: []byte(`{"status":"invalid_token"}`)}
		f.play(t, p.greeting+`
			C: `+p.command+`PLAIN `+string(wire.AppendPlain(nil, "bob", []byte("x")))+`
			S: `+p.wrong+`
			C: `+p.command+`XOAUTH2 no-base64
			S: *Invalid base64 in the authentication exchange (session *)
			C: `+p.again+`
			S: `+p.answered+`
		`)
	}
}

// Criterion: Bytes behind an OAuth message close the connection: they could be taken for the answer to a challenge.
func TestBytesBehindABearerTokenEnd(t *testing.T) {
	for _, p := range saslDialogues {
		for _, m := range bearers {
			msg := string(m.message(nil, "alice", []byte(token)))
			for _, script := range []string{
				"C- " + p.command + m.name + " " + msg + `\r\n` + p.again + `\r\n`,
				"C- " + p.command + m.name + `\r\n` + msg + `\r\n`,
				"C: " + p.command + m.name + "\nS: " + p.prompt + "\nC- " + msg + `\r\n` + p.again + `\r\n`,
			} {
				f := startInTLSWithOffer(t, p.protocol, 0, oauthOffer)
				f.play(t, p.greeting+"\n"+script+"\nS: "+p.broken+"\nS: <EOF>")
				f.wantEnd(t, errEarly)
				f.wantLogins(t, 0)
			}
		}
	}
}

// Criterion: Bytes that come while a token is checked close the connection when it is wrong.
func TestBytesBeforeTheChallengeEnd(t *testing.T) {
	for _, p := range saslDialogues {
		login := p.command + "XOAUTH2 " + string(wire.AppendXOAUTH2(nil, "alice", []byte(token))) + "\r\n"
		tp := &scriptedConn{in: io.MultiReader(strings.NewReader("EHLO x\r\n"), strings.NewReader(login), strings.NewReader(p.again+"\r\n"))}
		c := withTLS(proxy.NewConn(tp, proxy.Client{}, nil, 0))
		d := newDialogue(p.protocol, c, Options{Offer: func() proxy.Offer { return oauthOffer }})
		if _, err := d.Login(t.Context()); err != nil {
			t.Fatal(err)
		}
		watched, stop := c.Watch(t.Context())
		<-watched.Done() // the client has sent the line, and left
		stop()
		if err := d.Refuse(proxy.NewRefusal(proxy.Wrong, nil)); !errors.Is(err, errEarly) || strings.Contains(tp.out.String(), b64(`{"status":"invalid_token"}`)) {
			t.Errorf("%s: Refuse = %v, said %q", p.protocol, err, tp.out.String())
		}
	}
}

func TestMechanismsThatNoBackendHasAreNotServed(t *testing.T) {
	for _, m := range bearers {
		msg := string(m.message(nil, "alice", []byte(token)))
		f := startInTLS(t, proxy.IMAP, 0)
		f.play(t, greetingIMAP+"\nC: a AUTHENTICATE "+m.name+" "+msg+"\nS: a NO Authentication mechanism is not supported (session *)")
		f.wantLogins(t, 0)
		f = startInTLS(t, proxy.POP3, 0)
		f.play(t, greetingPOP3+"\nC: AUTH "+m.name+" "+msg+"\nS: -ERR Authentication mechanism is not supported (session *)")
		f.wantLogins(t, 0)
		f = startInTLS(t, proxy.Submission, 0)
		f.play(t, greetingSMTP+ehlo+"\nC: AUTH "+m.name+" "+msg+"\nS: 504 5.5.4 Authentication mechanism is not supported (session *)")
		f.wantLogins(t, 0)
	}
}

// Criterion: Of malformed credentials none reaches a backend; they are counted by mechanism.
func TestMalformedBearerMessagesReachNobody(t *testing.T) {
	for name, msg := range map[string]string{
		"no user":              "user=\x01auth=Bearer t\x01\x01",
		"NUL in the user":      "user=a\x00b\x01auth=Bearer t\x01\x01",
		"CR LF in the user":    "user=a\r\nb\x01auth=Bearer t\x01\x01",
		"a long user":          "user=" + strings.Repeat("u", 321) + "\x01auth=Bearer t\x01\x01",
		"CR LF in the token":   "user=alice\x01auth=Bearer t\r\nu\x01\x01",
		"no token":             "user=alice\x01auth=Bearer \x01\x01",
		"a long token":         "user=alice\x01auth=Bearer " + strings.Repeat("t", 12<<10+1) + "\x01\x01",
		"the answer of before": "\x01",
		"nothing":              "",
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range saslDialogues {
				f := startInTLSWithOffer(t, p.protocol, 0, oauthOffer)
				f.play(t, p.greeting+`
					C: `+p.command+`XOAUTH2
					S: `+p.prompt+`
					C: `+b64(msg)+`
					S: `+p.prompt+b64(`{"status":"invalid_request"}`)+`
					C: AQ==
					S: `+p.wrong+`
				`)
				f.wantLogins(t, 0)
				user := ""
				if strings.Contains(name, "long token") {
					user = "alice"
				}
				f.observed.wantAttempts(t, "malformed xoauth2 "+user)
			}
		})
	}
}

func TestClientThatLeavesItsChallengeUnansweredIsGone(t *testing.T) {
	f := startInTLSWithOffer(t, proxy.IMAP, 0, oauthOffer)
	c := f.dial(t)
	proxytest.Transcript(t, c, saslDialogues[0].greeting+`
		C: a AUTHENTICATE XOAUTH2 `+string(wire.AppendXOAUTH2(nil, "bob", []byte(token)))+`
		S: + *
		C: <EOF>
	`)
	select {
	case end := <-f.ends:
		if end.End != proxy.EndClientAbort {
			t.Errorf("ended with %v (%v)", end.End, end.Err)
		}
	case <-t.Context().Done():
	}
}

// Criterion: What is announced is asked for once, and stays the same for a connection.
func TestOfferIsFixedPerConnection(t *testing.T) {
	for _, p := range saslDialogues {
		tp := &scriptedConn{in: strings.NewReader("a CAPABILITY\r\nEHLO x\r\nAUTH\r\na CAPABILITY\r\nEHLO x\r\nAUTH\r\n")}
		requests := 0
		d := newDialogue(p.protocol, withTLS(proxy.NewConn(tp, proxy.Client{}, nil, 0)), Options{Offer: func() proxy.Offer {
			if requests++; requests > 1 {
				return proxy.Offer{}
			}
			return oauthOffer
		}})
		_, _ = d.Login(t.Context())
		if got := strings.Count(tp.out.String(), "OAUTHBEARER"); got < 2 || requests != 1 {
			t.Errorf("%s: OAUTHBEARER announced %d times, offer asked for %d times", p.protocol, got, requests)
		}
	}
}

// Criterion: Without a probe that succeeded IMAP and POP3 offer what every backend takes.
func TestPasswordsNeedNoOffer(t *testing.T) {
	for protocol, in := range map[string]string{proxy.IMAP: "a AUTHENTICATE PLAIN " + plain + "\r\n", proxy.POP3: "AUTH PLAIN " + plain + "\r\n"} {
		for _, o := range []Options{{}, {Offer: func() proxy.Offer { return proxy.Offer{} }}} {
			d := newDialogue(protocol, withTLS(proxy.NewConn(&scriptedConn{in: strings.NewReader(in)}, proxy.Client{}, nil, 0)), o)
			if l, err := d.Login(t.Context()); err != nil || l.User != user {
				t.Errorf("%s: Login = %v, %v", protocol, l, err)
			}
		}
	}
}

func TestThunderbirdWithOAuth(t *testing.T) {
	msg := string(wire.AppendXOAUTH2(nil, "bob", []byte(token)))
	f := startInTLSWithOffer(t, proxy.IMAP, 0, oauthOffer)
	f.answer["alice"] = nil
	f.play(t, saslDialogues[0].greeting+`
		C: 1 capability
		S: \* CAPABILITY *
		S: 1 OK *
		C: 2 authenticate XOAUTH2 `+msg+`
		S: + `+b64(`{"status":"invalid_token"}`)+`
		C:
		S: 2 NO [AUTHENTICATIONFAILED] *
		C: 3 authenticate XOAUTH2 `+string(wire.AppendXOAUTH2(nil, "alice", []byte(token)))+`
		S: 3 OK *
	`)
	f = startInTLSWithOffer(t, proxy.Submission, 0, oauthOffer)
	f.play(t, saslDialogues[2].greeting+`
		C: AUTH XOAUTH2 `+msg+`
		S: 334 *
		C:
		S: 535 5.7.8 *
	`)
}
