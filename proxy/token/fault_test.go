package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// Criterion: Each known error of Entra and of Google names what mends it, with the application's id where a page or a link needs it; the description, which may have addresses in it, is not shown.
func TestWhatMendsEachErrorOfATokenEndpoint(t *testing.T) {
	const trail = ` Trace ID: 3f5e1c7a Correlation ID: 9a1b Timestamp: 2026-11-29 03:00:00Z`
	secret := &ClientCredentials{ClientID: "11111111-2222-3333-4444-555555555555", SecretFile: writeTestFile(t, "secret", []byte("abc8Q~planted\n"))}
	id := &ClientCredentials{ClientID: "app", SecretFile: writeTestFile(t, "secret", []byte("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n"))}
	certificate, google := &ClientCredentials{ClientID: "app", CertFile: "cert", KeyFile: "key"}, &ServiceAccount{}
	microsoft := func(name, code, text string) string {
		octets, err := json.Marshal(map[string]string{"error": name, "error_description": "AADSTS" + code + ": " + text + trail})
		if err != nil {
			t.Fatal(err)
		}
		return string(octets)
	}
	for _, test := range []struct {
		name   string
		grant  Grant
		status int
		body   string
		class  Class
		want   string // of the advice
	}{
		{"wrong secret", secret, 401, microsoft("invalid_client", "7000215", "Invalid client secret provided."), Configuration, "App registrations, 11111111-2222-3333-4444-555555555555, Certificates & secrets"},
		{"the secret's id", id, 401, microsoft("invalid_client", "7000215", "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID."), Configuration, "client_secret_file has the secret's id"},
		{"expired secret", secret, 401, microsoft("invalid_client", "7000222", "The provided client secret keys for app are expired."), Configuration, "the secret has expired"},
		{"unknown application", secret, 400, microsoft("unauthorized_client", "700016", "Application with identifier 'app' was not found in the directory 'Contoso'."), Configuration, "compare client_id"},
		{"unknown tenant", secret, 400, microsoft("invalid_request", "90002", "Tenant 'contoso.example' not found."), Configuration, "Directory (tenant) ID"},
		{"no tenant at all", secret, 400, microsoft("invalid_request", "900023", "Specified tenant identifier 'x' is neither a valid DNS name, nor a valid external domain."), Configuration, "Directory (tenant) ID"},
		{"no consent", secret, 400, microsoft("invalid_grant", "65001", "The user or administrator has not consented to use the application."), Configuration, "adminconsent?client_id=11111111-2222-3333-4444-555555555555"},
		{"not in the tenant", secret, 401, microsoft("invalid_client", "7000229", "The client application app is missing service principal in the tenant."), Configuration, "adminconsent"},
		{"disabled", secret, 401, microsoft("unauthorized_client", "7000112", "Application 'app'(postern) is disabled."), Configuration, "enable it in Entra"},
		{"unknown certificate", certificate, 401, microsoft("invalid_client", "700027", "The certificate with identifier used to sign the client assertion is not registered on application."), Configuration, "upload it in Entra"},
		{"clock", certificate, 401, microsoft("invalid_client", "700024", "Client assertion is not within its valid time range."), Configuration, "timedatectl"},
		{"conditional access", secret, 400, microsoft("invalid_grant", "53003", "Access has been blocked by Conditional Access policies."), Configuration, "conditional access"},
		{"loop", secret, 400, microsoft("invalid_grant", "50196", "The server terminated an operation because it encountered a client request loop."), Temporary, "in a loop"},
		{"throttled", secret, 429, `{"error":"temporarily_unavailable"}`, Temporary, ""},

		{"not delegated", google, 401, `{"error":"unauthorized_client","error_description":"Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the scopes requested."}`, Configuration, "Manage Domain Wide Delegation"},
		{"another scope", google, 403, `{"error":"access_denied","error_description":"Requested client not authorized."}`, Configuration, "Manage Domain Wide Delegation"},
		{"clock", google, 400, `{"error":"invalid_grant","error_description":"Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."}`, Configuration, "timedatectl"},
		{"unknown key", google, 400, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`, Configuration, "does not know the key"},
		{"unknown service account", google, 400, `{"error":"invalid_grant","error_description":"Invalid grant: account not found"}`, Configuration, "service account"},
		{"unknown user", google, 400, `{"error":"invalid_grant","error_description":"Invalid email or User ID"}`, Account, "no such user"},
		{"deleted", google, 401, `{"error":"deleted_client","error_description":"The OAuth client was deleted."}`, Configuration, "deleted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &Provider{Name: "x", Grant: test.grant}
			resp, _ := response(test.status, "", test.body)
			_, err := p.parse(resp, []byte(test.body))
			fault, ok := errors.AsType[*Fault](err)
			if !ok || fault.Class != test.class || !strings.Contains(fault.Advice, test.want) {
				t.Fatalf("%v, class %v, advice %q; want %q in it", err, fault.Class, fault.Advice, test.want)
			}
			for _, hidden := range []string{"CLIENT_ID", "Trace", "Contoso", "planted", "aaaaaaaa"} {
				if strings.Contains(err.Error(), hidden) {
					t.Errorf("%q in %v", hidden, err)
				}
			}
		})
	}
}

// Criterion: Where a request is signed and refused, a clock that differs from the token endpoint's is named with the difference.
func TestAClockThatDiffersIsNamed(t *testing.T) {
	const body = `{"error":"invalid_grant","error_description":"Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."}`
	for _, test := range []struct {
		grant Grant
		skew  time.Duration
		named bool
	}{
		{&ServiceAccount{}, 2 * time.Hour, true},
		{&ServiceAccount{}, -2 * time.Hour, true},
		{&ServiceAccount{}, 20 * time.Second, false},
		{&ClientCredentials{CertFile: "cert"}, time.Hour, true},
		{&ClientCredentials{SecretFile: "secret"}, time.Hour, false},
	} {
		p := &Provider{Name: "x", Grant: test.grant}
		resp, _ := response(400, "", body)
		resp.Header.Set("Date", time.Now().Add(test.skew).UTC().Format(http.TimeFormat))
		_, err := p.parse(resp, []byte(body))
		if strings.Contains(err.Error(), "it differs from the token endpoint's by") != test.named || strings.Count(err.Error(), clockAdvice) > 1 {
			t.Errorf("%T, clock %v: %v", test.grant, test.skew, err)
		}
	}
}

// entraToken returns a token with this payload.
func entraToken(payload string) *proxy.Secret {
	encode := base64.RawURLEncoding.EncodeToString
	return proxy.NewSecret([]byte(encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(payload)) + ".c2lnbmF0dXJl"))
}

func TestClaimsOfATokenOfEntra(t *testing.T) {
	const app, object = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
	c, ok := ReadClaims(entraToken(`{"aud":"https://outlook.office365.com","appid":"` + app + `","oid":"` + object + `","roles":["IMAP.AccessAsApp","\u001b[31m"]}`))
	if !ok || c.Application != app || c.ObjectID != object || !slices.Equal(c.Permissions, []string{"IMAP.AccessAsApp"}) {
		t.Errorf("%+v, %v", c, ok)
	}
	for _, token := range []*proxy.Secret{
		nil, proxy.NewSecret([]byte("opaque")), proxy.NewSecret([]byte("a.b.c")), proxy.NewSecret([]byte("..")), entraToken(`[]`), entraToken(`{"appid":"` + app + `"}`),
		entraToken(`{"appid":"` + app + `","oid":"x; Remove-Mailbox"}`), entraToken(`{"appid":` + strings.Repeat("[", 10000)),
	} {
		if c, ok := ReadClaims(token); ok {
			t.Errorf("%+v of a token without them", c)
		}
	}
}

func FuzzClaims(f *testing.F) {
	f.Add(string(entraToken(`{"appid":"11111111-2222-3333-4444-555555555555","oid":"66666666-7777-8888-9999-000000000000","roles":["a"]}`).Reveal()))
	f.Fuzz(func(t *testing.T, token string) {
		if c, ok := ReadClaims(proxy.NewSecret([]byte(token))); ok && (len(c.ObjectID) != 36 || len(c.Permissions) > 16) {
			t.Errorf("%+v", c)
		}
	})
}
