// Package page serves the status page, for operators without a dashboard. The page
// is one HTML document without scripts and without external resources, and it names
// no user.
//
// A Page is a proxy.Observer, which counts logins, and an http.Handler.
package page

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"time"

	"postern/proxy"
)

// Config has the functions that return what the page shows. They are called at each
// request; what has no function is not shown.
type Config struct {
	Hostname, Version string
	Protocols         []string // that listeners serve

	NotReady     func() error     // why new clients should go to another Postern; nil error: ready
	Findings     func() []Finding // what needs attention, the most urgent first
	Sessions     func() map[string]int
	Backends     func() []Backend
	Providers    func() []Provider // empty: no backend takes tokens
	Passwords    func() *Passwords // nil: Postern checks none
	Certificates func() []Certificate
	Accounts     func() []Accounts // empty: not counted yet
	Stages       func() []Stages   // of the days on which they were counted
	Guard        func() Guard
	Now          func() time.Time // nil: time.Now
}

// A Finding is a fault that an operator should know.
type Finding struct {
	Severity string // in words
	Class    string // of its colour: bad, warn or quiet
	Text     string
	Detail   string
	Next     string // what to do next
}

// A Backend is the state of a backend and one protocol. Each of its Members is up and
// accepts logins, or down, drained or not probed yet.
type Backend struct {
	Name, Protocol  string
	Members, Up     int
	Drained         int
	Unknown         int // not probed yet
	Connections     int
	LastError       string // of the last member that was not reached; empty: all were
	IdentityRefused bool   // a member does not offer the configured identity, and takes Postern for the client
	Braked          bool   // POP3 accounts whose mailbox looks different are refused
	BrakedSince     time.Time
	Accepted        time.Time // until when mailboxes may look different; zero: they may not
}

// A Provider is the state of an authorization server that gives tokens.
type Provider struct {
	Name, Kind string
	State      string    // in words
	Class      string    // of the colour of State: bad, warn or ""
	Since      time.Time // of a State that is bad or warn
	Error      string    // of the last request, if no token came
	Tokens     int       // that are valid now
	Last       time.Time // when a token came last; zero: none came yet
	NotAfter   time.Time // until when the certificate or the secret is valid; zero: not known
	EndsSoon   bool      // NotAfter needs attention
}

// Passwords counts the device passwords.
type Passwords struct {
	Devices, Accounts int
	Broken            int // of Devices: they cannot be read, or state.key_file does not have their key
	Expired           int // of Devices
}

// Accounts counts the accounts that have logged in by a protocol within 30 days.
type Accounts struct {
	Protocol string
	All      int
	TLS      [4]int // of them, those whose oldest version on the last day was 1.3, 1.2, 1.1 and 1.0
	Refused  int    // accounts of which a login without TLS was refused
	Habits   []Habit
}

// A Habit is what POP3 clients do with the mail on the server, in words, and the number of
// accounts whose clients do that.
type Habit struct {
	Words    string
	Accounts int
}

// A Certificate is the validity of a name's certificate.
type Certificate struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
	State               string // in words; "": not judged
	Bad, Warn           bool   // no client accepts it; it needs attention
}

// A Guard is the state of the login guard.
type Guard struct {
	Learning          bool    // it has no history yet
	DryRun            bool    // it refuses nothing
	Remembered        int     // networks, accounts and pairs
	FailingAccounts   int     // with a wrong password in the last five minutes
	FailingNetworks   int     // with a wrong password in the last five minutes
	FailureRatio      float64 // of the last five minutes' logins
	Waiting, InFlight int     // attempts
}

// A BackendState is the State of a Backend in words, with the class of its colour.
type BackendState struct{ Class, Text string }

// State returns whether logins go to the backend. A backend that accepts none is bad,
// whether it is down or drained.
func (b Backend) State() BackendState {
	s := BackendState{"warn", fmt.Sprintf("%d of %d up", b.Up, b.Members)}
	down := b.Members - b.Up - b.Drained - b.Unknown
	switch {
	case b.Up == b.Members:
		return BackendState{"", "up"}
	case b.Up > 0:
	case b.Unknown > 0:
		return BackendState{"warn", "not probed yet"}
	case down == 0:
		return BackendState{"bad", "drained"}
	default:
		s = BackendState{"bad", "down"}
	}
	if b.Drained > 0 {
		s.Text += fmt.Sprintf(", %d drained", b.Drained)
	}
	return s
}

// A Page is a proxy.Observer that counts the logins of a day, and the handler that
// shows them. It must be made by New.
type Page struct {
	config  Config
	started time.Time
	day     day
}

// New returns a Page.
func New(c Config) *Page {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Page{config: c, started: c.Now()}
}

// Observe implements proxy.Observer.
func (p *Page) Observe(e proxy.Event) {
	if a, ok := e.(proxy.Attempt); ok {
		if o, answered := proxy.OutcomeOf(a.Err); answered {
			p.day.add(p.config.Now(), o)
		}
	}
}

//go:embed page.html
var source string

//go:embed page.css
var style string

var (
	document = template.Must(template.New("page").Funcs(template.FuncMap{
		"count": count, "since": since, "left": left, "percent": percent,
	}).Parse(source))

	policy = "default-src 'none'; style-src 'sha256-" + digest(style) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// digest returns the hash of a style sheet for the Content-Security-Policy.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	_ = document.Execute(w, p.content()) // an error: the client has left
}

// content is all that one response shows.
type content struct {
	Style             template.CSS
	Hostname, Version string
	Now, Started      time.Time
	NotReady          string
	Findings          []Finding
	MoreFindings      int
	Attention         int // findings that are more than quiet
	Live              []live
	LiveAll           int
	Totals            []total
	Attempts          int
	Charts            []chart
	Backends          []Backend
	Providers         []Provider
	MoreProviders     int
	Passwords         *Passwords
	Certificates      []Certificate
	MoreCertificates  int
	CertificatesAsked bool
	Accounts          []Accounts
	Stages            *chart
	Guard             *Guard
}

type live struct {
	Protocol string
	Sessions int
}

// A total is the number of logins with one outcome in the last day.
type total struct {
	Class, Name, Help string
	N                 int
	Share             float64
}

// maxRows is how many findings, providers and certificates are listed: the most urgent,
// those that end first.
const maxRows = 12

// content collects what the response shows.
func (p *Page) content() *content {
	now := p.config.Now()
	slots := p.day.slots(now)
	c := &content{
		Style: template.CSS(style), Hostname: p.config.Hostname, Version: p.config.Version, Now: now, Started: p.started,
		Charts: charts(slots, now),
	}
	c.sum(slots)
	if p.config.NotReady != nil {
		if err := p.config.NotReady(); err != nil {
			c.NotReady = err.Error()
		}
	}
	if p.config.Findings != nil {
		c.Findings = p.config.Findings()
		for _, f := range c.Findings {
			if f.Class != "quiet" {
				c.Attention++
			}
		}
		if more := len(c.Findings) - maxRows; more > 0 {
			c.Findings, c.MoreFindings = c.Findings[:maxRows], more
		}
	}
	if p.config.Sessions != nil {
		sessions := p.config.Sessions()
		for _, protocol := range p.config.Protocols {
			c.Live = append(c.Live, live{protocol, sessions[protocol]})
			c.LiveAll += sessions[protocol]
		}
	}
	if p.config.Backends != nil {
		c.Backends = p.config.Backends()
	}
	if p.config.Providers != nil {
		c.Providers = p.config.Providers()
		slices.SortStableFunc(c.Providers, func(a, b Provider) int { return providerRank(a) - providerRank(b) })
		if more := len(c.Providers) - maxRows; more > 0 {
			c.Providers, c.MoreProviders = c.Providers[:maxRows], more
		}
	}
	if p.config.Passwords != nil {
		c.Passwords = p.config.Passwords()
	}
	if p.config.Certificates != nil {
		c.CertificatesAsked = true
		c.Certificates = p.config.Certificates()
		slices.SortFunc(c.Certificates, func(a, b Certificate) int {
			return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Name, b.Name))
		})
		if more := len(c.Certificates) - maxRows; more > 0 {
			c.Certificates, c.MoreCertificates = c.Certificates[:maxRows], more
		}
	}
	if p.config.Accounts != nil {
		c.Accounts = p.config.Accounts()
	}
	if p.config.Stages != nil {
		c.Stages = newStageChart(p.config.Stages(), now)
	}
	if p.config.Guard != nil {
		g := p.config.Guard()
		c.Guard = &g
	}
	return c
}

// providerRank orders providers: those that need attention come first.
func providerRank(p Provider) int {
	switch {
	case p.Class == "bad":
		return 0
	case p.Class != "" || p.EndsSoon:
		return 1
	}
	return 2
}

// sum adds up the slots of the day.
func (c *content) sum(slots []slot) {
	var n [proxy.Outcomes]int
	for _, s := range slots {
		for o, k := range s {
			n[o] += k
			c.Attempts += k
		}
	}
	for o, k := range n {
		t := total{Class: rows[o].class, Name: rows[o].name, Help: rows[o].help, N: k}
		if c.Attempts > 0 {
			t.Share = float64(k) / float64(c.Attempts)
		}
		c.Totals = append(c.Totals, t)
	}
}
