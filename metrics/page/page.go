// Package page is the status page: what an operator without a dashboard wants
// to see at a glance. It is one HTML document without scripts and without
// anything from elsewhere, and it names no user.
package page

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"slices"
	"time"

	"postern/proxy"
)

// Config says where the page has its facts from. Its functions are asked at
// each look; nil: the page is silent about it.
type Config struct {
	Hostname, Version string
	Protocols         []string // that are served

	NotReady     func() error // why new clients should go elsewhere
	Sessions     func() map[string]int
	Backends     func() []Backend
	Certificates func() []Certificate
	Accounts     func() []Accounts // none: not counted yet
	Guard        func() Guard
	Now          func() time.Time // nil: time.Now
}

// A Backend is what stands behind, for one protocol.
type Backend struct {
	Name, Protocol  string
	Members, Up     int
	Drained         int
	Connections     int
	LastError       string // why a member is not up, without addresses of clients; may be empty
	IdentityRefused bool   // it takes Postern for the client
	Braked          bool   // POP3 accounts whose mailbox looks different are refused
	BrakedSince     time.Time
	Accepted        time.Time // until when mailboxes may look different; zero: they may not
}

// Accounts is how many have logged in by a protocol within 30 days, and those of
// them whose last day had TLS 1.3, 1.2, 1.1 and 1.0 as the oldest.
type Accounts struct {
	Protocol string
	All      int
	TLS      [4]int
}

// A Certificate is how long a name has one.
type Certificate struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
}

// A Guard is how the login guard stands.
type Guard struct {
	Learning          bool    // it has no history yet
	DryRun            bool    // it refuses nobody
	Remembered        int     // networks, accounts and pairs
	FailingAccounts   int     // that had a wrong password in the last five minutes
	FailingNetworks   int     // the same
	FailureRatio      float64 // of the last five minutes' logins
	Waiting, InFlight int     // attempts
}

// A Page is a proxy.Observer that remembers a day of logins, and the handler
// that shows them. It must be made by New.
type Page struct {
	config Config
	begun  time.Time
	day    day
}

// New returns a Page.
func New(c Config) *Page {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Page{config: c, begun: c.Now()}
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
	_ = document.Execute(w, p.look()) // who asked has left
}

// A look is all that one answer shows.
type look struct {
	Style             template.CSS
	Hostname, Version string
	Now, Begun        time.Time
	NotReady          string
	Live              []live
	LiveAll           int
	Totals            []total
	Attempts          int
	Charts            []chart
	Backends          []Backend
	Certificates      []Certificate
	MoreCertificates  int
	CertificatesAsked bool
	Accounts          []Accounts
	Guard             *Guard
}

type live struct {
	Protocol string
	Sessions int
}

// A total is how often the last day's logins came to one outcome.
type total struct {
	Class, Name, Help string
	N                 int
	Share             float64
}

// maxRows bounds what is listed; what ends soonest comes first.
const maxRows = 12

func (p *Page) look() *look {
	now := p.config.Now()
	slots := p.day.slots(now)
	l := &look{
		Style: template.CSS(style), Hostname: p.config.Hostname, Version: p.config.Version, Now: now, Begun: p.begun,
		Charts: charts(slots, now),
	}
	l.sum(slots)
	if p.config.NotReady != nil {
		if err := p.config.NotReady(); err != nil {
			l.NotReady = err.Error()
		}
	}
	if p.config.Sessions != nil {
		sessions := p.config.Sessions()
		for _, protocol := range p.config.Protocols {
			l.Live = append(l.Live, live{protocol, sessions[protocol]})
			l.LiveAll += sessions[protocol]
		}
	}
	if p.config.Backends != nil {
		l.Backends = p.config.Backends()
	}
	if p.config.Certificates != nil {
		l.CertificatesAsked = true
		l.Certificates = p.config.Certificates()
		slices.SortFunc(l.Certificates, func(a, b Certificate) int {
			return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Name, b.Name))
		})
		if more := len(l.Certificates) - maxRows; more > 0 {
			l.Certificates, l.MoreCertificates = l.Certificates[:maxRows], more
		}
	}
	if p.config.Accounts != nil {
		l.Accounts = p.config.Accounts()
	}
	if p.config.Guard != nil {
		g := p.config.Guard()
		l.Guard = &g
	}
	return l
}

func (l *look) sum(slots []slot) {
	var n [proxy.Outcomes]int
	for _, s := range slots {
		for o, k := range s {
			n[o] += k
			l.Attempts += k
		}
	}
	for o, k := range n {
		t := total{Class: rows[o].class, Name: rows[o].name, Help: rows[o].help, N: k}
		if l.Attempts > 0 {
			t.Share = float64(k) / float64(l.Attempts)
		}
		l.Totals = append(l.Totals, t)
	}
}
