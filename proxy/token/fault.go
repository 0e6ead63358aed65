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
func (f *Fault) Error() string { return fmt.Sprintf("provider %s: %s", f.Provider, f.Reason()) }

// Reason returns what happened and what can be done.
func (f *Fault) Reason() string {
	if f.Advice == "" {
		return f.Text
	}
	return f.Text + "; " + f.Advice
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

// errorName is what the errors of RFC 6749 section 5.2 look like. What else it lets an error
// be may be a secret.
var errorName = regexp.MustCompile(`^[a-z_]{1,64}$`)

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

// An advisory is a known error. Codes of Microsoft are no stable interface, and neither are
// texts of Google: they give advice, and the class only where the name alone would give a
// wrong one. CLIENT_ID stands for that of the application.
type advisory struct {
	code   int    // of Microsoft Entra; 0: any
	name   string // of RFC 6749; "": any
	text   string // part of the description, in lower case; "": any
	class  Class
	advice string
}

const (
	secretIDAdvice = "client_secret_file has the secret's id: Entra wants what the column Value shows when the secret is made"
	clockAdvice    = "this machine's clock is wrong: timedatectl says whether it is synchronized"
)

var advisories = []advisory{
	{code: 50196, class: Temporary, advice: "Entra says that the application asks in a loop"},
	{code: 7000215, class: Configuration, advice: "the secret is wrong: make a new one in Entra (App registrations, CLIENT_ID, Certificates & secrets), and write its value, not its id, to client_secret_file"},
	{code: 7000222, class: Configuration, advice: "the secret has expired: make a new one in Entra (App registrations, CLIENT_ID, Certificates & secrets), and write its value to client_secret_file"},
	{code: 700024, class: Configuration, advice: clockAdvice},
	{code: 700027, class: Configuration, advice: "Entra does not know the certificate, or its time is over: upload it in Entra (App registrations, CLIENT_ID, Certificates & secrets, Certificates)"},
	{code: 700016, class: Configuration, advice: "Entra does not know the application in this tenant: compare client_id with the Application (client) ID, and tenant with the Directory (tenant) ID"},
	{code: 90002, class: Configuration, advice: "Entra does not know the tenant: write the Directory (tenant) ID as tenant"},
	{code: 900023, class: Configuration, advice: "Entra does not know the tenant: write the Directory (tenant) ID as tenant"},
	{code: 65001, class: Configuration, advice: consentAdvice},
	{code: 7000229, class: Configuration, advice: consentAdvice},
	{code: 7000112, class: Configuration, advice: "the application is disabled: enable it in Entra (Enterprise applications, Properties)"},
	{code: 53003, class: Configuration, advice: "a policy of conditional access blocks the application: the service principal sign-ins in Entra name it"},
	{name: "temporarily_unavailable", class: Temporary},
	{name: "server_error", class: Temporary},
	{name: "slow_down", class: Temporary},
	{name: "unauthorized_client", class: Configuration, advice: "the client id is not authorized for this grant and scope; Google: " + DelegationAdvice},
	{name: "access_denied", text: "not authorized", class: Configuration, advice: DelegationAdvice},
	{name: "deleted_client", class: Configuration, advice: "the application was deleted"},
	{name: "disabled_client", class: Configuration, advice: "the application is disabled"},
	{name: "invalid_client", class: Configuration, advice: "the client id, or its secret or certificate, is wrong"},
	{name: "invalid_scope", class: Configuration, advice: "the scope is wrong"},
	{name: "unsupported_grant_type", class: Configuration, advice: "token_url does not know this grant"},
	{name: "invalid_request", class: Configuration},
	{name: "invalid_grant", text: "invalid jwt signature", class: Configuration, advice: "Google does not know the key in key_file: make a new one (console.cloud.google.com, IAM & Admin, Service Accounts, Keys)"},
	{name: "invalid_grant", text: "reasonable timeframe", class: Configuration, advice: clockAdvice},
	{name: "invalid_grant", text: "account not found", class: Configuration, advice: "Google does not know the service account in key_file: it was deleted"},
	{name: "invalid_grant", text: "invalid email or user id", class: Account, advice: "the Workspace has no such user, or the user is suspended"},
	{name: "invalid_grant", class: Account, advice: "the server gives no token for this mailbox: does the user exist, and is this machine's clock right?"},
}

const consentAdvice = "an administrator has to consent to the application's permissions: https://login.microsoftonline.com/organizations/adminconsent?client_id=CLIENT_ID"

// DelegationAdvice says where Google's administrators delegate a scope.
const DelegationAdvice = "enter the service account's client id with the scope https://mail.google.com/ in the admin console " +
	"(admin.google.com, Security, Access and data control, API controls, Manage Domain Wide Delegation)"

// refused returns the Fault for an error response with an HTTP status.
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
	description := strings.ToLower(r.Description)
	for _, a := range advisories {
		if (a.code == 0 || slices.Contains(codes, a.code)) && (a.name == "" || a.name == strings.ToLower(r.Error)) && strings.Contains(description, a.text) {
			f.Class, f.Advice = a.class, p.Grant.fill(a)
			break
		}
	}
	if f.Class == Account && !p.Grant.perMailbox() {
		f.Class = Configuration // it would be the same for any mailbox
	}
	return f
}
