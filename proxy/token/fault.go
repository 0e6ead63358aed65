package token

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
)

// A Class is what a Fault is about.
type Class uint8

// The values of Class.
const (
	Temporary     Class = iota // the authorization server is away, slow or throttles: the next request may succeed
	Account                    // there is no token for this mailbox, and there are for others
	Configuration              // the application or its key: there is no token for any mailbox
)

// String returns the class as the Result of proxy.TokenRequested.
func (c Class) String() string {
	return [...]string{Temporary: proxy.TokenTemporary, Account: proxy.TokenAccount, Configuration: proxy.TokenConfiguration}[c]
}

// A Fault is why there is no token.
type Fault struct {
	Provider   string // its name in the configuration
	Class      Class
	Text       string        // what happened; of the server's octets the error's name and its numbers alone
	Advice     string        // what an operator can do; "": nothing is known
	RetryAfter time.Duration // that the server asks for; 0: none
}

// Error returns the provider, what happened and what can be done.
func (f *Fault) Error() string {
	text := fmt.Sprintf("provider %s: %s", f.Provider, f.Text)
	if f.Advice != "" {
		text += "; " + f.Advice
	}
	return text
}

func (p *Provider) fail(class Class, text string) *Fault {
	return &Fault{Provider: p.Name, Class: class, Text: text}
}

// A refusal is an error response: RFC 6749 section 5.2, with the numbers that Microsoft adds.
type refusal struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Codes       []int  `json:"error_codes"`
}

// errorName is what RFC 6749 section 5.2 lets an error be, and shorter.
var errorName = regexp.MustCompile(`^[a-z0-9_.-]{1,64}$`)

// entraCode is a number of Microsoft Entra in a description.
var entraCode = regexp.MustCompile(`AADSTS([0-9]{4,8})\b`)

// codes returns the numbers of Microsoft Entra in r.
func (r *refusal) codes() []int {
	const most = 8
	all := r.Codes
	if m := entraCode.FindStringSubmatch(r.Description); m != nil {
		if code, err := strconv.Atoi(m[1]); err == nil && !slices.Contains(all, code) {
			all = append(slices.Clone(all), code)
		}
	}
	return all[:min(len(all), most)]
}

// An advisory is a known error. Codes of Microsoft are no stable interface: they give
// advice, and the class only where the name alone would give a wrong one.
type advisory struct {
	code   int    // of Microsoft Entra; 0: any
	name   string // of RFC 6749; "": any
	class  Class
	advice string
}

var advisories = []advisory{
	{50196, "", Temporary, "Entra says that the application asks in a loop"},
	{7000215, "", Configuration, "the secret is wrong: client_secret_file must have the secret's value, not its id"},
	{7000222, "", Configuration, "the secret has expired: make a new one in Entra and write it to client_secret_file"},
	{700027, "", Configuration, "Entra does not know the certificate: upload it to the application, or its time is over"},
	{700016, "", Configuration, "Entra does not know the application in this tenant: compare client_id and tenant"},
	{90002, "", Configuration, "Entra does not know the tenant"},
	{65001, "", Configuration, "an administrator has to consent to the application's permissions"},
	{0, "temporarily_unavailable", Temporary, ""},
	{0, "server_error", Temporary, ""},
	{0, "slow_down", Temporary, ""},
	{0, "unauthorized_client", Configuration, "the client id is not authorized for this grant and scope; Google: enter it under domain-wide delegation in the admin console"},
	{0, "deleted_client", Configuration, "the application was deleted"},
	{0, "invalid_client", Configuration, "the client id, or its secret or certificate, is wrong"},
	{0, "invalid_scope", Configuration, "the scope is wrong"},
	{0, "unsupported_grant_type", Configuration, "token_url does not know this grant"},
	{0, "invalid_request", Configuration, ""},
	{0, "invalid_grant", Account, "the server gives no token for this mailbox; Google: does the user exist, and is this machine's clock right?"},
}

// fault returns the Fault for an error response with an HTTP status.
func (p *Provider) refused(status int, r refusal, retryAfter time.Duration) *Fault {
	name := "an error without a valid name"
	if errorName.MatchString(r.Error) {
		name = r.Error
	}
	f := p.fail(Temporary, fmt.Sprintf("the token endpoint answered %d %s", status, name))
	f.RetryAfter = retryAfter
	codes := r.codes()
	for _, code := range codes {
		f.Text += fmt.Sprintf(" AADSTS%d", code)
	}
	if status >= 500 || status == 429 || status == 408 {
		return f
	}
	for _, a := range advisories {
		if (a.code == 0 || slices.Contains(codes, a.code)) && (a.name == "" || a.name == strings.ToLower(r.Error)) {
			f.Class, f.Advice = a.class, a.advice
			break
		}
	}
	if f.Class == Account && !p.Grant.perMailbox() {
		f.Class = Configuration // it would be the same for any mailbox
	}
	return f
}
