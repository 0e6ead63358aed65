package proxytest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
)

func xoauth2(user, token string) string {
	return base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"))
}

// fetchToken returns a token of the application copier.
func fetchToken(t *testing.T, o *OAuth) string {
	t.Helper()
	resp, err := http.PostForm(o.TokenURL, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {"copier"}, "client_secret": {"sec ret"}, "scope": {"mail"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		t.Fatalf("%s, %v: no token", resp.Status, err)
	}
	return answer.Token
}

// Real servers that only take tokens: the dialogues that the rest of the tests rely on.
func TestDovecotAndPostfixTakeTokens(t *testing.T) {
	t.Parallel()
	o := StartOAuth(t, map[string]OAuthClient{"copier": {Secret: "sec ret"}})
	users := map[string]string{"anna@example.org": "", "bob@example.org": ""}
	own := StartDovecot(t, DovecotOptions{Users: users, OAuth: o})
	tenant := StartDovecot(t, DovecotOptions{Users: users, OAuth: o, Tenant: true})
	postfix := StartPostfix(t, PostfixOptions{Dovecot: tenant})
	good := fetchToken(t, o)
	Transcript(t, ClientTLS(dial(t, tenant.IMAPS), pool(t, tenant.CA)), `
		S: \* OK [CAPABILITY * LOGINDISABLED AUTH=XOAUTH2 AUTH=OAUTHBEARER] *
		C: a AUTHENTICATE XOAUTH2 `+xoauth2("anna@example.org", good)+`
		S: a OK *
	`)
	Transcript(t, ClientTLS(dial(t, own.IMAPS), pool(t, own.CA)), `
		S: \* OK *
		C: a AUTHENTICATE XOAUTH2 `+xoauth2("anna@example.org", o.Issue("bob@example.org"))+`
		S: + *
		C: 
		S: a NO [AUTHENTICATIONFAILED] *
		C: b AUTHENTICATE XOAUTH2 `+xoauth2("anna@example.org", o.Issue("anna@example.org"))+`
		S: b OK *
	`)
	Transcript(t, ClientTLS(dial(t, postfix.SMTPS), pool(t, postfix.CA)), `
		S: 220 *
		C: EHLO client
		S: 250-mx*
		S: 250-PIPELINING
		S: 250-SIZE *
		S: 250-VRFY
		S: 250-ETRN
		S: 250-AUTH XOAUTH2 OAUTHBEARER
		S: 250-ENHANCEDSTATUSCODES
		S: 250-8BITMIME
		S: 250-DSN
		S: 250-SMTPUTF8
		S: 250 CHUNKING
		C: AUTH XOAUTH2
		S: 334 
		C: `+xoauth2("bob@example.org", good)+`
		S: 235 *
	`)
	o.BreakIntrospection(true)
	Transcript(t, ClientTLS(dial(t, tenant.IMAPS), pool(t, tenant.CA)), `
		S: \* OK *
		C: a AUTHENTICATE XOAUTH2 `+xoauth2("anna@example.org", good)+`
		S: a NO [UNAVAILABLE] *
	`)
}
