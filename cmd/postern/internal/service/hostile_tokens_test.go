package service

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/memserver"
	"postern/proxy/password"
	"postern/proxy/proxytest"
)

// A tokenHouse is a Postern in front of servers that take tokens alone.
type tokenHouse struct {
	*running
	oauth  *proxytest.OAuth
	behind *proxytest.TokenServers
	dir    string
	log    *lockedBuffer
	secret string // of the application
}

// mailboxes are those behind a tokenHouse.
var mailboxes = []string{"anna@example.org", "eve@example.org", "shared@example.org"}

// startWithTokens starts a Postern with device passwords and a passwd file for anna, whose
// password is "secret of alice". names is the content of names_file, more of the
// configuration.
func startWithTokens(t *testing.T, names, more string) *tokenHouse {
	t.Helper()
	const hash = "$6$rounds=1000$E/9dx1OfkQN0nO63$8Vgvf6gp5SXtNcKYXLk6wNQJaVIc4awgaxp.fki/OJ.uR60BkrlE6sS0btHzgHCIMf5Rwm8dmH3W9NimiH6qD0"
	h := newTokenHouse(t, nil)
	if names != "" {
		file(t, h.dir, "names", names)
		names = "names_file: names, "
	}
	file(t, h.dir, "secret", h.secret)
	file(t, h.dir, "passwd", "anna@example.org:"+hash+"\n")
	h.start(t, fmt.Sprintf(`
backends: {main: {token: own, %simap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
providers: {own: {kind: oauth, token_url: %q, scope: mail, client_id: copier, client_secret_file: secret, domains: [example.org]}}
passwords: {devices: true, file: passwd}
log: {level: debug, fail2ban: %q}
`, names, h.behind.IMAP, h.behind.Submission, h.oauth.TokenURL, filepath.Join(h.dir, "failed.log"))+more)
	return h
}

// newTokenHouse starts the servers, with a message in each mailbox, and an authorization
// server that knows the client copier and more.
func newTokenHouse(t *testing.T, more map[string]proxytest.OAuthClient) *tokenHouse {
	t.Helper()
	h := &tokenHouse{dir: t.TempDir(), log: new(lockedBuffer), secret: "Cn4ry" + rand.Text()}
	clients := map[string]proxytest.OAuthClient{"copier": {Secret: h.secret}}
	maps.Copy(clients, more)
	h.oauth = proxytest.StartOAuth(t, clients)
	imap, submission := mailServers(t, 1)
	h.behind = proxytest.StartTokenServers(t, h.oauth, imap, submission, func(user string) string { return "secret of " + user })
	return h
}

// mailServers starts servers with messages in each mailbox.
func mailServers(t *testing.T, messages int) (imap, submission string) {
	t.Helper()
	var accounts []memserver.Account
	for _, user := range mailboxes {
		accounts = append(accounts, memserver.Account{User: user, Password: "secret of " + user})
	}
	m := memserver.New(memserver.Options{Accounts: accounts})
	t.Cleanup(func() { _ = m.Close() })
	for _, user := range mailboxes {
		for n := range messages {
			if err := m.Append(user, fmt.Appendf(nil, "Subject: %d for %s\r\n\r\nhello\r\n", n, user)); err != nil {
				t.Fatal(err)
			}
		}
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	if submission, err = serveInMemory(m.ServeSMTP); err != nil {
		t.Fatal(err)
	}
	return imap, submission
}

// start starts Postern with listeners of three protocols.
func (h *tokenHouse) start(t *testing.T, config string) {
	t.Helper()
	file(t, h.dir, "state.key", base64.StdEncoding.EncodeToString([]byte("the key of a test has 32 octets!")))
	cfg, err := configs.Parse(filepath.Join(h.dir, "test.yaml"), []byte(baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}, {protocol: pop3, address: "127.0.0.1:0"}, {protocol: submission, address: "127.0.0.1:0"}]
state: {path: %q, key_file: state.key}
control: {socket: off}
`, filepath.Join(h.dir, "state"))+config))
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	h.running = startServiceWith(t, cfg, store, h.log)
	h.roots = roots
}

// ways are the ways in which a client logs in with a name and a password. Each is a
// listener, and what the client says, in pieces.
func ways(name, password string) map[string][]string {
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + name + "\x00" + password))
	all := map[string][]string{
		"imap AUTHENTICATE":  {"a AUTHENTICATE PLAIN " + plain + "\r\n"},
		"imap LOGIN":         {fmt.Sprintf("a LOGIN {%d+}\r\n%s {%d+}\r\n%s\r\n", len(name), name, len(password), password)},
		"pop3 AUTH":          {"AUTH PLAIN " + plain + "\r\n"},
		"submission AUTH":    {"EHLO client.example\r\n", "AUTH PLAIN " + plain + "\r\n"},
		"submission LOGIN":   {"EHLO client.example\r\n", "AUTH LOGIN " + base64.StdEncoding.EncodeToString([]byte(name)) + "\r\n", base64.StdEncoding.EncodeToString([]byte(password)) + "\r\n"},
		"imap AUTHENTICATE2": {"a AUTHENTICATE PLAIN\r\n", plain + "\r\n"},
	}
	if !strings.ContainsAny(name, "\r\n") {
		all["pop3 USER"] = []string{"USER " + name + "\r\n", "PASS " + password + "\r\n"}
	}
	return all
}

// attempt logs in from an address, and returns the last line that came, "" if none did.
func (h *tokenHouse) attempt(t *testing.T, source, way string, pieces []string) string {
	t.Helper()
	lines := h.dialogue(t, source, way, pieces)
	return lines[len(lines)-1]
}

// dialogue is attempt, and returns all lines that came.
func (h *tokenHouse) dialogue(t *testing.T, source, way string, pieces []string) []string {
	t.Helper()
	listener, _, _ := strings.Cut(way, " ")
	c, err := h.from(t, source, listener)
	if err != nil {
		t.Error(err)
		return []string{""}
	}
	defer func() { _ = c.Close() }()
	in := bufio.NewReader(c)
	greeting, _ := in.ReadString('\n')
	lines := []string{greeting}
	for _, piece := range pieces {
		if _, err := io.WriteString(c, piece); err != nil {
			return lines
		}
		for more := true; more; {
			line, err := in.ReadString('\n')
			if err != nil {
				return lines
			}
			lines = append(lines, line)
			more = strings.HasPrefix(line, "* ") || strings.HasPrefix(line, "250-")
		}
	}
	return lines
}

// loggedIn reports whether an answer is that to a login.
func loggedIn(answer string) bool {
	return strings.HasPrefix(answer, "a OK") || strings.HasPrefix(answer, "+OK") || strings.HasPrefix(answer, "235")
}

// each calls f for all of a list, 16 at a time. The number gives an address of its own.
func each[T any](all []T, f func(source string, one T)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i, one := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			f(fmt.Sprintf("127.%d.%d.1", 10+i/200, i%200), one)
		})
	}
	wg.Wait()
}

// Criterion: Who has a device password of one account opens no other account's mailbox, whatever is written as the name: NUL, controls, foreign authorization identities, domains, other scripts' letters; nor an account outside the provider's domains.
func TestADevicePasswordOpensItsOwnMailboxAlone(t *testing.T) {
	h := startWithTokens(t, "scanner@example.org shared@example.org\n", "guard: {delay: 100ms}\n")
	password := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "eve@example.org", Name: "phone"}).Password
	scanner := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "scanner@example.org", Name: "scanner"}).Password
	type try struct {
		name, password string
		opens          string // the mailbox; "": none
	}
	var tries []try
	for _, name := range []string{
		"anna@example.org", "ANNA@example.org", "anna@example.org.", "anna@EXAMPLE.ORG", "anna", "shared@example.org",
		"eve@example.org\x00anna@example.org", "anna@example.org\x00eve@example.org", "anna@example.org\x01auth=Bearer x\x01\x01",
		"eve@example.org\x01", "\x01eve@example.org", "eve@example.org\nanna@example.org", "eve@example.org\r\nx", "eve@example.org,anna@example.org",
		"eve@example.org anna@example.org", "eve@example.org\tanna@example.org", "anna@example.org*eve@example.org", "eve@example.org*anna@example.org",
		"anna%eve@example.org", "anna@example.org@example.org", "anna@example.org@eve@example.org", "eve@example.com@example.org",
		"eve@example.org@example.com", "eve@example.com", "eve@sub.example.org", "eve@example.org\u200b", "e\u200bve@example.org", "\u0435ve@example.org",
		"eve@ex\u0430mple.org", "eve@\uff45xample.org", "EVE@example\u3002org", "", " ", "@example.org", "eve@", "=eve@example.org", "n,a=anna@example.org",
		`"eve"@example.org`, "eve+x@example.org", "scanner@example.org", "imap=anna@example.org", strings.Repeat("a", 4000) + "@example.org", "\xff\xfeeve@example.org",
	} {
		tries = append(tries, try{name, password, ""})
	}
	for _, name := range []string{"eve@example.org", "Eve@Example.ORG", " eve@example.org "} {
		tries = append(tries, try{name, password, "eve@example.org"})
	}
	tries = append(tries, try{"scanner@example.org", scanner, "shared@example.org"}, try{"shared@example.org", scanner, ""})
	type attempt struct {
		try
		way    string
		pieces []string
	}
	var attempts []attempt
	for _, one := range tries {
		for way, pieces := range ways(one.name, one.password) {
			if strings.HasPrefix(way, "pop3 USER") && strings.TrimSpace(one.name) != one.name {
				continue // USER has no spaces
			}
			attempts = append(attempts, attempt{one, way, pieces})
		}
	}
	// The identity that wants to be another one.
	for _, who := range [][2]string{{"anna@example.org", "eve@example.org"}, {"eve@example.org", "anna@example.org"}} {
		message := base64.StdEncoding.EncodeToString([]byte(who[0] + "\x00" + who[1] + "\x00" + password))
		for way, pieces := range map[string][]string{"imap": {"a AUTHENTICATE PLAIN " + message + "\r\n"}, "pop3": {"AUTH PLAIN " + message + "\r\n"}, "submission": {"EHLO x\r\n", "AUTH PLAIN " + message + "\r\n"}} {
			attempts = append(attempts, attempt{try{name: who[0] + " NUL " + who[1]}, way, pieces})
		}
	}
	each(attempts, func(source string, a attempt) {
		answer := h.attempt(t, source, a.way, a.pieces)
		if got, want := loggedIn(answer), a.opens != ""; got != want {
			t.Errorf("%s as %.40q: %q; want a login: %v", a.way, a.name, answer, want)
		}
	})
	// A client's own token is the server's to judge, and is not exchanged for one of Postern's.
	foreign := base64.StdEncoding.EncodeToString([]byte("user=anna@example.org\x01auth=Bearer " + password + "\x01\x01"))
	for way, pieces := range map[string][]string{"imap": {"a AUTHENTICATE XOAUTH2 " + foreign + "\r\n", "\r\n"}, "pop3": {"AUTH XOAUTH2 " + foreign + "\r\n", "\r\n"}} {
		if answer := h.attempt(t, "127.99.0.1", way, pieces); loggedIn(answer) {
			t.Errorf("%s with a password for a token: %q", way, answer)
		}
	}
	opened := map[string]int{}
	for _, login := range h.behind.Logins() {
		_, user, _ := strings.Cut(login, " ")
		opened[user]++
	}
	foreignTokens := 2
	if opened["anna@example.org"] > foreignTokens || opened["eve@example.org"] == 0 || opened["shared@example.org"] == 0 || len(opened) > 3 {
		t.Errorf("logins at the servers: %v", opened)
	}
}

// Criterion: 1,000 wrong passwords, of device passwords and of the passwd file, change no token, send no request to the provider or a server, and are charged as guesses; the right one logs in afterwards.
func TestWrongPasswordsReachNobody(t *testing.T) {
	h := startWithTokens(t, "", "guard: {delay: 100ms, learning: 0s}\n")
	password := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "eve@example.org", Name: "phone"}).Password
	begin := func(account, password string) string {
		return h.attempt(t, "127.0.0.1", "imap", ways(account, password)["imap AUTHENTICATE"])
	}
	if answer := begin("eve@example.org", password); !loggedIn(answer) {
		t.Fatal(answer)
	}
	requests, logins := len(h.oauth.Requests()), len(h.behind.Logins())
	var attempts []string
	for i := range 1000 {
		attempts = append(attempts, []string{"anna@example.org", "eve@example.org", "nobody@example.org", "eve@example.com"}[i%4])
	}
	var mu sync.Mutex
	answers := map[string]int{}
	each(attempts, func(source string, account string) {
		guess := strings.ToLower(rand.Text())
		answer := h.attempt(t, source, "imap", ways(account, guess)["imap AUTHENTICATE"])
		kind, _, _ := strings.Cut(answer, "]")
		mu.Lock()
		defer mu.Unlock()
		answers[kind+"]"]++
	})
	for kind := range answers {
		if kind != "a NO [AUTHENTICATIONFAILED]" && kind != "a NO [UNAVAILABLE]" { // the latter: the guard lets no more guesses through
			t.Errorf("answers: %v", answers)
		}
	}
	if n := answers["a NO [AUTHENTICATIONFAILED]"]; n < 20 {
		t.Errorf("%d guesses were answered as wrong: nothing was tried", n)
	}
	if n := len(h.oauth.Requests()) - requests; n != 0 {
		t.Errorf("%d requests for tokens", n)
	}
	if n := len(h.behind.Logins()) - logins; n != 0 {
		t.Errorf("%d logins at the servers", n)
	}
	if answer := begin("eve@example.org", password); !loggedIn(answer) { // from a network that is known-good
		t.Errorf("the right password afterwards: %q", answer)
	}
	if n := len(h.oauth.Requests()) - requests; n != 0 {
		t.Errorf("%d requests for tokens after the right password: the token was lost", n)
	}
	t.Logf("%v", answers)
}

// Criterion: A wrong password of an account with a password, of one without, of a device that was removed and of a domain without tokens is answered with the same octets in all three protocols.
func TestAccountsCannotBeToldApartByText(t *testing.T) {
	h := startWithTokens(t, "", "guard: {delay: 100ms, learning: 0s}\n")
	removed := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "eve@example.org", Name: "phone"})
	one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "eve@example.org", Name: "tablet"})
	one(t, h.running, stored.RemoveDevice, stored.DeviceName{Account: "eve@example.org", ID: removed.ID})
	for _, way := range []string{"imap AUTHENTICATE", "pop3 USER", "submission AUTH"} {
		answers := map[string][]string{}
		for i, try := range [][2]string{
			{"eve@example.org", removed.Password}, {"eve@example.org", "wrong"}, {"anna@example.org", "wrong"},
			{"nobody@example.org", "wrong"}, {"nobody@example.org", removed.Password}, {"eve@example.com", removed.Password}, {"anna", "wrong"},
		} {
			answer := h.attempt(t, fmt.Sprintf("127.50.%d.1", i), way, ways(try[0], try[1])[way])
			text, _, _ := strings.Cut(answer, "(session")
			answers[text] = append(answers[text], try[0])
		}
		if len(answers) != 1 {
			t.Errorf("%s: %q", way, answers)
		}
	}
}

// Criterion: No token, application's secret, assertion or device password is in the log at debug, the metrics, the status page, the state, the lists of sessions and devices, the outcomes of logins or what clients are told, whatever servers and authorization servers answer, also if they repeat what they were sent.
func TestTokensAreNowhere(t *testing.T) {
	h := startWithTokens(t, "", "guard: {delay: 100ms, learning: 0s}\n")
	made := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "eve@example.org", Name: "phone"})
	var mu sync.Mutex
	tokens, answers := map[string]bool{}, new(strings.Builder)
	token := func(message string) string {
		octets, _ := base64.StdEncoding.DecodeString(message)
		_, rest, _ := strings.Cut(string(octets), "auth=Bearer ")
		text, _, _ := strings.Cut(rest, "\x01")
		mu.Lock()
		defer mu.Unlock()
		tokens[text] = true
		return text
	}
	logIn := func() {
		for way, pieces := range ways("eve@example.org", made.Password) {
			for _, line := range h.dialogue(t, "127.0.0.1", way, pieces) {
				answers.WriteString(line)
			}
		}
	}
	for _, lines := range []func(token, message string) string{
		func(string, string) string { return "" }, // this one logs in
		func(token, _ string) string { return "TAG NO [AUTHENTICATIONFAILED] bad token " + token + "\r\n" },
		func(token, _ string) string { return "TAG NO [ALERT] token " + token + "\r\n" },
		func(token, _ string) string { return "TAG NO [" + token + "] x\r\n" },
		func(token, _ string) string { return "TAG NO [UNAVAILABLE] " + token + "\r\n" },
		func(token, _ string) string {
			return "* NO [ALERT] about " + token + "\r\nTAG NO [UNAVAILABLE] no\r\n"
		},
		func(_, message string) string { return "TAG BAD " + message + "\r\n" },
		func(token, _ string) string { return "* BYE " + token + "\r\n" },
		func(token, _ string) string { return token + "\r\n" },
		func(token, _ string) string {
			return "+ " + base64.StdEncoding.EncodeToString([]byte(`{"status":"400","scope":"`+token+`"}`)) + "\r\nTAG NO no\r\n"
		},
		func(token, _ string) string { return "535 5.7.8 bad token " + token[:400] + "\r\n" },
		func(token, _ string) string {
			return "535-5.7.139 " + token[:400] + "\r\n535 5.7.139 " + token[:400] + "\r\n"
		},
		func(_, message string) string { return "334 " + message[:400] + "\r\n" },
		func(token, _ string) string { return "454 4.7.0 " + token[:200] + "\r\n" },
		func(token, _ string) string { return "4" + token[:200] + "\r\n" },
	} {
		h.behind.Refuse(func(_, message string) string { return lines(token(message), message) })
		logIn()
	}
	h.oauth.Fail(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintf(w, `{"error":"invalid_client","error_description":"AADSTS7000215: %s"}`, r.PostFormValue("client_secret"))
	})
	other := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "anna@example.org", Name: "phone"})
	for way, pieces := range ways("anna@example.org", other.Password) { // a slot that has no token yet
		answers.WriteString(h.attempt(t, "127.0.0.1", way, pieces))
	}

	page := httptest.NewRecorder()
	h.service.page.ServeHTTP(page, httptest.NewRequest("GET", "/", nil))
	var told []any
	collect := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	status, err := h.service.status(t.Context(), struct{}{})
	collect(err)
	told = append(told, status)
	collect(h.service.listSessions(t.Context(), SessionFilter{}, func(s Session) error { told = append(told, s); return nil }))
	collect(stored.ListDevices.Answer(t.Context(), h.service.Storage, "", func(d password.Device) error { told = append(told, d); return nil }))
	text, err := json.Marshal(told)
	collect(err)
	outcomes := fmt.Sprintf("%+v", h.service.outcomesOf("eve@example.org", WhyQuestion{}))

	canaries := map[string]string{"the application's secret": h.secret, "a device password": made.Password, "the other device password": other.Password}
	for token := range tokens {
		canaries["a token"] = token[:26]
		for name, canary := range canaries {
			for where, what := range map[string]string{
				"the log": h.log.String(), "the metrics": h.metrics(""), "the page": page.Body.String(), "the answers of commands": string(text),
				"the outcomes": outcomes, "what clients are told": answers.String(),
			} {
				if len(what) < 50 {
					t.Fatalf("%s: %q: nothing was looked at", where, what)
				}
				wantNoCanary(t, canary, where+", of "+name+",", []byte(what))
			}
		}
	}
	if len(tokens) == 0 || !strings.Contains(h.log.String(), "login refused") || !strings.Contains(h.log.String(), "AADSTS7000215") {
		t.Errorf("%d tokens: nothing was tried", len(tokens))
	}
	err = filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "secret" {
			return err
		}
		octets, err := os.ReadFile(path)
		for name, canary := range canaries {
			wantNoCanary(t, canary, d.Name()+", of "+name+",", octets)
		}
		for token := range tokens {
			wantNoCanary(t, token[:26], d.Name(), octets)
		}
		return err
	})
	collect(err)
}

// Criterion: With accounts.lowercase: false, another spelling of an account of the passwd file is another account, to the guard and to the file: it is no second budget of guesses.
func TestSpellingsAreNoMoreGuesses(t *testing.T) {
	for more, want := range map[string]bool{"": true, "accounts: {lowercase: false}\n": false} {
		t.Run(more, func(t *testing.T) {
			h := startWithTokens(t, "", "guard: {delay: 100ms}\n"+more)
			for account, right := range map[string]bool{"anna@example.org": true, "Anna@Example.org": want, "ANNA@example.org": want} {
				answer := h.attempt(t, "127.0.0.1", "imap", ways(account, "secret of alice")["imap AUTHENTICATE"])
				if right != !strings.Contains(answer, "[AUTHENTICATIONFAILED]") {
					t.Errorf("%s: %q", account, answer)
				}
			}
		})
	}
}

// Criterion: A change of passwords.file counts within 2 s, without a reload; a broken file keeps the passwords of before, and status names it.
func TestAPasswdFileIsReadAgainWhilePosternRuns(t *testing.T) {
	h := startWithTokens(t, "", "guard: {delay: 100ms}\n")
	path := filepath.Join(h.dir, "passwd")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hash, _ := strings.CutPrefix(string(before), "anna@example.org:")
	in := func(account string) bool {
		return loggedIn(h.attempt(t, "127.0.0.1", "imap", ways(account, "secret of alice")["imap AUTHENTICATE"]))
	}
	if !in("anna@example.org") || in("eve@example.org") {
		t.Fatal("anna is not in the file, or eve is")
	}
	h.service.guard.Unlock("eve@example.org") // which remembers the wrong password for 30 s
	file(t, h.dir, "passwd", "eve@example.org:"+hash)
	begun := time.Now()
	within(t, patience, "eve logs in", func() bool {
		h.service.guard.Unlock("eve@example.org")
		return in("eve@example.org")
	})
	const slack = 2 * time.Second // of a machine with other work, and of the guard's delay
	if took := time.Since(begun); took > 2*time.Second+slack {
		t.Errorf("the change counts after %v", took)
	}
	file(t, h.dir, "passwd", "eve@example.org:plain\n")
	within(t, patience, "the mistake is logged", func() bool { return strings.Contains(h.log.String(), "file not loaded") })
	if !in("eve@example.org") {
		t.Error("a broken file loses the passwords of before")
	}
	status, err := h.service.status(t.Context(), struct{}{})
	if text := fmt.Sprintf("%+v", status); err != nil || !strings.Contains(text, path+":1:") {
		t.Errorf("%v, and status does not name the line:\n%s", err, text)
	}
}

// Criterion: CRAM-MD5, NTLM and APOP, which need the password itself on the server, are not offered in front of servers that take tokens and are refused without asking anybody; CRAM-MD5 and NTLM are counted (no client sends APOP, which needs the greeting's timestamp).
func TestMechanismsThatNeedThePasswordAreRefused(t *testing.T) {
	h := startWithTokens(t, "", "guard: {delay: 100ms}\n")
	for way, pieces := range map[string][]string{
		"imap CAPABILITY": {"a CAPABILITY\r\n"}, "pop3 CAPA": {"CAPA\r\n"}, "submission EHLO": {"EHLO client.example\r\n"},
	} {
		if offer := strings.Join(h.dialogue(t, "127.0.0.1", way, pieces), ""); strings.Contains(offer, "MD5") || strings.Contains(offer, "NTLM") || strings.Contains(offer, "APOP") || strings.Contains(offer, "<") && way == "pop3 CAPA" {
			t.Errorf("%s: %q", way, offer)
		}
	}
	for way, pieces := range map[string][]string{
		"imap CRAM-MD5": {"a AUTHENTICATE CRAM-MD5\r\n"}, "imap NTLM": {"a AUTHENTICATE NTLM TlRMTVNTUAABAAAA\r\n"}, "pop3 CRAM-MD5": {"AUTH CRAM-MD5\r\n"},
		"pop3 APOP": {"APOP anna@example.org c4c9334bac560ecc979e58001b3e22fb\r\n"}, "submission CRAM-MD5": {"EHLO client.example\r\n", "AUTH CRAM-MD5\r\n"},
		"submission NTLM": {"EHLO client.example\r\n", "AUTH NTLM TlRMTVNTUAABAAAA\r\n"},
	} {
		answer := h.attempt(t, "127.0.0.1", way, pieces)
		if loggedIn(answer) || strings.HasPrefix(answer, "+ ") || strings.HasPrefix(answer, "334") {
			t.Errorf("%s: %q", way, answer)
		}
	}
	for protocol, want := range map[string]int{"imap": 2, "pop3": 1, "submission": 2} {
		if got := h.count(t, `mechanism="other",protocol="`+protocol+`",result="unsupported_mechanism"`); got != want {
			t.Errorf("%s: %d refusals are counted, want %d", protocol, got, want)
		}
	}
	if len(h.oauth.Requests()) != 0 || len(h.behind.Logins()) != 0 {
		t.Error("somebody was asked")
	}
}

// Criterion: After the right device password, whatever Exchange and Gmail answer to a token is told as temporary in all three protocols, and costs no guess: a hundred refusals later the same client logs in.
func TestRefusedTokensCostNoGuess(t *testing.T) {
	h := startWithTokens(t, "", "guard: {delay: 100ms, learning: 0s}\n")
	password := one(t, h.running, stored.AddDevice, stored.NewDevice{Account: "eve@example.org", Name: "phone"}).Password
	temporary := map[string][]string{
		"imap": {"a NO [UNAVAILABLE]", "a NO [LIMIT]"}, "pop3": {"-ERR [SYS/TEMP]"}, "submission": {"454 4.7.0", "454 4.3.2"},
	}
	n := 0
	for _, answers := range []map[string]string{
		{"imap": "TAG NO AUTHENTICATE failed.\r\n", "submission": "535 5.7.3 Authentication unsuccessful [HOST 2026-11-29T04:00:00.000Z 08DC]\r\n"},
		{"imap": "TAG NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\r\n", "submission": "535-5.7.8 Username and Password not accepted.\r\n535 5.7.8 https://support.google.com/mail\r\n"},
		{"imap": "TAG NO [ALERT] Too many simultaneous connections. (Failure)\r\n", "submission": "432 4.3.2 Concurrent connections limit exceeded\r\n"},
		{"imap": "TAG NO [ALERT] Please log in via your web browser (Failure)\r\n", "submission": "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.\r\n"},
		{"imap": "TAG NO [OVERQUOTA] Account exceeded command or bandwidth limits. (Failure)\r\n", "submission": "454 4.7.0 Too many login attempts\r\n"},
		{"imap": "* BYE Connection closed. 14\r\n", "submission": "421 4.7.0 bye\r\n"},
	} {
		h.behind.Refuse(func(protocol, _ string) string { return answers[protocol] })
		for way, pieces := range ways("eve@example.org", password) {
			protocol, _, _ := strings.Cut(way, " ")
			for range 3 {
				n++
				answer := h.attempt(t, "127.8.0.1", way, pieces)
				if !slices.ContainsFunc(temporary[protocol], func(want string) bool { return strings.HasPrefix(answer, want) }) {
					t.Errorf("%s: %q became %q", way, answers[protocol], answer)
				}
			}
		}
	}
	h.behind.Refuse(nil)
	for way, pieces := range ways("eve@example.org", password) {
		if answer := h.attempt(t, "127.8.0.1", way, pieces); !loggedIn(answer) {
			t.Errorf("%s after %d refusals: %q", way, n, answer)
		}
	}
}
