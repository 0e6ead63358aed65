package page

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

var noon = time.Date(2026, 11, 22, 12, 7, 0, 0, time.UTC)

// clock is a time that a test turns.
type clock struct{ now time.Time }

func (c *clock) time() time.Time { return c.now }

// busy returns the page of a hoster on an ordinary day that has an attack in
// it, and more names than fit.
func busy() *Page {
	c := &clock{noon.Add(-24 * time.Hour)}
	p := New(Config{
		Hostname: "mail.example.org", Version: "1.0.0", Now: c.time, Protocols: []string{proxy.IMAP, proxy.POP3, proxy.Submission},
		Sessions: func() map[string]int {
			return map[string]int{proxy.IMAP: 18234, proxy.POP3: 412, proxy.Submission: 37}
		},
		Backends: func() []Backend {
			return []Backend{
				{Name: "main", Protocol: proxy.IMAP, Members: 3, Up: 2, Connections: 18646, LastError: "dial 10.0.0.7:993: connection refused"},
				{Name: "main", Protocol: proxy.Submission, Members: 1, Up: 1, Connections: 37, IdentityRefused: true},
				{Name: "old", Protocol: proxy.IMAP, Members: 1, Up: 0, Drained: 1},
			}
		},
		Providers: func() []Provider {
			return []Provider{
				{Name: "contoso", Kind: "microsoft", State: "up", Tokens: 8, Last: noon.Add(-40 * time.Minute), NotAfter: noon.AddDate(0, 0, 10), EndsSoon: true},
				{Name: "school", Kind: "google", State: "misconfigured", Class: "bad", Since: noon.Add(-3 * time.Minute), Error: "the token endpoint answered 401 invalid_client <b>; the client id is wrong"},
				{Name: "new", Kind: "oauth", State: "not asked yet"},
			}
		},
		Passwords: func() *Passwords { return &Passwords{Devices: 1204, Accounts: 977, Broken: 2, Expired: 31} },
		Findings: func() []Finding {
			return []Finding{
				{Severity: "critical", Class: "bad", Text: "backend old accepts no imap logins: it is drained", Next: "postern drain old --undo"},
				{Severity: "warning", Class: "warn", Text: "backend main (imap and pop3): of 3 servers 1 down", Detail: "10.0.0.7:993, for 4 minutes: <b>dial tcp 10.0.0.7:993: connect: connection refused", Next: "postern check --probe"},
				{Severity: "notice", Class: "quiet", Text: "limits.max_connections 10000 needs 20192 file descriptors, 20000 are allowed", Next: "raise LimitNOFILE in the unit, or lower limits.max_connections"},
			}
		},
		Certificates: func() (all []Certificate) {
			all = append(all, Certificate{Name: "expired.example.org", Source: "file", NotBefore: noon.AddDate(0, -3, 0), NotAfter: noon.Add(-26 * time.Hour), State: "EXPIRED", Bad: true})
			for i := range 5000 {
				all = append(all, Certificate{Name: fmt.Sprintf("mail.customer-%04d.example", i), Source: "acme", NotBefore: noon.AddDate(0, -1, 0), NotAfter: noon.AddDate(0, 0, 3+i/80), State: "valid"})
			}
			return all
		},
		Accounts: func() []Accounts {
			return []Accounts{
				{Protocol: proxy.IMAP, All: 41234, TLS: [4]int{41100, 120, 0, 14}},
				{Protocol: proxy.POP3, All: 2310, TLS: [4]int{1900, 380, 9, 21}, Refused: 417, Habits: []Habit{{"leaves on server", 1210}, {"deletes all", 800}, {"unknown", 300}}},
				{Protocol: proxy.Submission, All: 39800, TLS: [4]int{39800}},
			}
		},
		Guard: func() Guard {
			return Guard{Learning: true, Remembered: 48213, FailingAccounts: 311, FailingNetworks: 1204, FailureRatio: 0.184, InFlight: 3, Waiting: 1}
		},
	})
	for i := range slotsDay {
		for range 400 + 300*(i%40) {
			p.Observe(proxy.Attempt{})
		}
		for range i % 7 {
			p.Observe(proxy.Attempt{Err: proxy.NewRefusal(proxy.Wrong, nil)})
		}
		if i > 60 && i < 66 {
			for range 90 {
				p.Observe(proxy.Attempt{Err: proxy.NewRefusal(proxy.Throttled, nil)})
				p.Observe(proxy.Attempt{Err: proxy.NewRefusal(proxy.Unavailable, nil)})
			}
		}
		p.Observe(proxy.Attempt{Err: proxy.NewRefusal(proxy.Plaintext, nil)})
		c.now = c.now.Add(slotTime)
	}
	return p
}

// fresh returns the page of a Postern that has just started, and has nothing.
func fresh() *Page {
	c := &clock{noon}
	return New(Config{
		Hostname: "mail.example.org", Version: "1.0.0", Now: c.time, Protocols: []string{proxy.POP3},
		NotReady: func() error { return errors.New("no backend is up") }, Sessions: func() map[string]int { return nil },
		Certificates: func() []Certificate { return nil }, Backends: func() []Backend { return nil },
	})
}

func body(t *testing.T, p *Page) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	r := w.Result()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(b)
}

// Criterion: The status page is one document without scripts and without anything from elsewhere, under a policy that allows neither.
func TestPageNeedsNothingFromElsewhere(t *testing.T) {
	for _, p := range []*Page{busy(), fresh()} {
		r, html := body(t, p)
		if got := r.Header.Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'; style-src 'sha256-") {
			t.Errorf("policy %q", got)
		}
		if found := regexp.MustCompile(`(?i)<script|<img|<link|<iframe|style=| on[a-z]+=|url\(|https?:`).FindString(html); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
}

func TestPageOfABusyDay(t *testing.T) {
	_, html := body(t, busy())
	for _, want := range []string{
		"18\u202f234", "2 of 3 up", "down", "takes Postern for the client", "expired 26 hours ago", "And 4\u202f989 that end later",
		"18.4 %", "Accounts seen in 30 days", "refused by pop3 without TLS: 417.", "leaves on server 1\u202f210, deletes all 800, unknown 300.", "41\u202f234", "Learning: rate limits", "Serving", "Rate limit", "&lt; 0.1 %",
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// Criterion: the status page colours a backend that accepts no logins, whether it is down or drained, and does not call one down that was not probed yet.
func TestTheStateOfABackendIsColoured(t *testing.T) {
	for _, c := range []struct {
		backend Backend
		want    BackendState
	}{
		{Backend{Members: 2, Up: 2}, BackendState{"", "up"}},
		{Backend{Members: 2, Up: 1}, BackendState{"warn", "1 of 2 up"}},
		{Backend{Members: 3, Up: 1, Drained: 1}, BackendState{"warn", "1 of 3 up, 1 drained"}},
		{Backend{Members: 1, Drained: 1}, BackendState{"bad", "drained"}},
		{Backend{Members: 2, Drained: 1}, BackendState{"bad", "down, 1 drained"}},
		{Backend{Members: 2}, BackendState{"bad", "down"}},
		{Backend{Members: 2, Unknown: 1}, BackendState{"warn", "not probed yet"}},
		{Backend{Members: 2, Unknown: 1, Up: 1}, BackendState{"warn", "1 of 2 up"}},
	} {
		if got := c.backend.State(); got != c.want {
			t.Errorf("%+v is %v, want %v", c.backend, got, c.want)
		}
	}
}

// Criterion: the status page begins with what needs attention, each with the next step.
func TestPageBeginsWithWhatNeedsAttention(t *testing.T) {
	_, html := body(t, busy())
	for _, want := range []string{
		`<p class="state warn" role="status">Serving; 2 things need attention</p>`, "<title>Attention · mail.example.org",
		`<strong class="bad">critical</strong> backend old accepts no imap logins: it is drained<br>next: postern drain old --undo</li>`,
		`<span class="quiet">10.0.0.7:993, for 4 minutes: &lt;b&gt;`,
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if at := strings.Index(html, "What needs attention"); at < 0 || at > strings.Index(html, "Sessions now") {
		t.Error("it is not at the begin")
	}
}

func TestPageOfAFreshStart(t *testing.T) {
	_, html := body(t, fresh())
	for _, want := range []string{"Not ready: no backend is up", "None yet.", "No backend is configured.", "No certificate is loaded."} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(html, "<rect") {
		t.Error("there is a bar")
	}
}

func TestADayIsForgottenAfterADay(t *testing.T) {
	var d day
	d.add(noon, proxy.OutcomeWrong)
	d.add(noon.Add(23*time.Hour+45*time.Minute), proxy.OutcomeOK)
	slots := d.slots(noon.Add(23*time.Hour + 45*time.Minute))
	if slots[0][proxy.OutcomeWrong] != 1 || slots[slotsDay-1][proxy.OutcomeOK] != 1 {
		t.Errorf("got %v at first and %v at last", slots[0], slots[slotsDay-1])
	}
	if slots = d.slots(noon.Add(24 * time.Hour)); slots[0][proxy.OutcomeWrong] != 0 || slots[slotsDay-2][proxy.OutcomeOK] != 1 {
		t.Errorf("a day later: %v at first, %v before the last", slots[0], slots[slotsDay-2])
	}
	d.add(noon.Add(-time.Hour), proxy.OutcomeFailed) // the clock was set back
	if slots = d.slots(noon.Add(24 * time.Hour)); slots[slotsDay-1][proxy.OutcomeFailed] != 1 {
		t.Errorf("set back: %v at last", slots[slotsDay-1])
	}
}

func TestScaleIsEasyToRead(t *testing.T) {
	for n, want := range map[int]int{0: 2, 2: 2, 3: 4, 5: 10, 11: 20, 399: 400, 401: 1000, math.MaxInt: math.MaxInt} {
		if got := scaleMax(n); got != want {
			t.Errorf("scaleMax(%d) = %d, want %d", n, got, want)
		}
	}
}

// Criterion: The status page shows each provider of tokens with its state, its last token and the end of its certificate or secret, and the numbers of device passwords.
func TestPageShowsProvidersAndDevices(t *testing.T) {
	_, html := body(t, busy())
	for _, want := range []string{
		`<td>up<br><span class="quiet">valid tokens: 8, the last came 40 minutes ago</span></td><td class="warn"><time datetime="2026-12-02T12:07:00Z">in 10 days</time></td>`,
		`<td><strong class="bad">misconfigured</strong> for 3 minutes<br><span class="quiet">the token endpoint answered 401 invalid_client &lt;b&gt;; the client id is wrong; valid tokens: 0</span></td><td>not known</td>`,
		`<td>not asked yet<br><span class="quiet">valid tokens: 0</span></td>`,
		"<div><dt>device passwords</dt><dd>1\u202f204</dd></div>", `<div><dt>accounts with devices</dt><dd>977</dd></div>`,
		`<div><dt>past their last day</dt><dd>31</dd></div>`, `<div><dt>that do not work</dt><dd class="bad">2</dd></div>`,
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	many := New(Config{Providers: func() (all []Provider) {
		for i := range 20 {
			all = append(all, Provider{Name: fmt.Sprint("tenant", i), State: "up"})
		}
		return append(all, Provider{Name: "last", State: "down", Class: "warn"})
	}})
	if _, html = body(t, many); !strings.Contains(html, `<th scope="row">last`) || strings.Contains(html, "tenant11") || !strings.Contains(html, "And 9 more: postern provider list.") {
		t.Error("of many providers those that need attention are not shown first, and the others counted")
	}
	_, html = body(t, fresh())
	if strings.Contains(html, "Providers") || strings.Contains(html, "devices") {
		t.Error("the page shows providers or devices where there are none")
	}
}

// Criterion: A real browser shows the status page, on a desk and on a phone, in the dark as well, without an error.
func TestBrowserShowsThePage(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("POSTERN_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip("chromium is not installed")
	}
	folder := os.Getenv("POSTERN_SCREENSHOTS") // to look at
	if folder == "" {
		folder = t.TempDir()
	}
	for name, p := range map[string]*Page{"busy": busy(), "fresh": fresh()} {
		server := httptest.NewServer(p)
		t.Cleanup(server.Close)
		for _, look := range []struct {
			name, size string
			flags      []string
		}{
			{"desk", "1100,2300", nil},
			{"phone", "500,3200", nil},
			{"dark", "1100,2300", []string{"--blink-settings=preferredColorScheme=0"}},
		} {
			picture := filepath.Join(folder, name+"-"+look.name+".png")
			out := browse(t, chromium, append(look.flags, "--window-size="+look.size, "--screenshot="+picture, server.URL)...)
			if strings.Contains(out, "Refused to") || strings.Contains(out, "violates") {
				t.Errorf("%s, %s: the browser says\n%s", name, look.name, out)
			}
			if info, err := os.Stat(picture); err != nil || info.Size() < 10_000 {
				t.Errorf("%s, %s: %v, the picture is empty", name, look.name, err)
			}
		}
		if wide := tooWide(t, chromium, p, filepath.Join(folder, name+"-narrow.png")); wide != "" {
			t.Errorf("%s: a phone of 360 pixels has to scroll sideways: %s", name, wide)
		}
		dom := browse(t, chromium, "--dump-dom", server.URL)
		if !strings.Contains(dom, "Sessions now") {
			t.Errorf("%s: the browser has\n%s", name, dom)
		}
		for _, words := range []string{"Providers of tokens", "misconfigured", "Passwords of devices"} {
			if strings.Contains(dom, words) != (name == "busy") {
				t.Errorf("%s: %q is shown: %v", name, words, name != "busy")
			}
		}
	}
}

// measure is a document with the page in a frame as wide as a phone: a window of a browser
// cannot be that narrow. It names what is wider, and what scrolls sideways in itself.
const measure = `<!doctype html><title>measure</title><style>body{margin:0}iframe{border:0;width:360px;height:3600px}</style>
<iframe src="/page"></iframe><pre id="wide"></pre><script>
onload = () => {
	const d = document.querySelector("iframe").contentDocument, wide = []
	if (d.documentElement.scrollWidth > 360) wide.push("document " + d.documentElement.scrollWidth)
	for (const e of d.querySelectorAll("body *")) {
		if (e.getBoundingClientRect().right > 360.5 || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX == "auto")
			wide.push(e.tagName + " " + e.className + " " + e.textContent.trim().slice(0, 30))
	}
	document.querySelector("#wide").textContent = "measured " + d.querySelectorAll("table").length + " tables: " + wide.join("; ")
}</script>`

// tooWide returns what of the page is wider than a phone.
func tooWide(t *testing.T, chromium string, p *Page, picture string) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, measure) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { // without the policy, which forbids frames
		_, html := body(t, p)
		_, _ = io.WriteString(w, html)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	browse(t, chromium, "--window-size=500,3600", "--screenshot="+picture, server.URL)
	found := regexp.MustCompile(`measured \d+ tables: ([^<]*)`).FindStringSubmatch(browse(t, chromium, "--dump-dom", server.URL))
	if found == nil {
		t.Fatal("the browser has not measured")
	}
	return found[1]
}

// browse runs a browser of its own, without a window, and returns what it says.
func browse(t *testing.T, chromium string, flags ...string) string {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), chromium, append([]string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
		"--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0", "--user-data-dir=" + home,
	}, flags...)...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, out)
	}
	return string(out)
}
