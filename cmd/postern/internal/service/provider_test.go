package service

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"postern/configs"
	"postern/proxy/proxytest"
)

const (
	testClientID = "11111111-2222-3333-4444-555555555555"
	testObjectID = "66666666-7777-8888-9999-000000000000"
)

// scripted is a server in the clear whose connections are served by scripts, one each.
func scripted(t *testing.T, scripts ...string) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	serving.Go(func() {
		for _, script := range scripts {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			proxytest.ServeTranscript(t, conn, script)
		}
	})
	return ln.Addr().String()
}

// imapAnswer and smtpAnswer are logins with a token that end with the lines of rest.
func imapAnswer(greeting, rest string) string {
	return "S: * OK " + greeting + `
		C: P1 CAPABILITY
		S: * CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+
		S: P1 OK CAPABILITY completed.
		C: P2 AUTHENTICATE XOAUTH2 *
	` + rest
}

func smtpAnswer(greeting, rest string) string {
	return "S: 220 " + greeting + `
		C: EHLO *
		S: 250-mx.example Hello
		S: 250 AUTH LOGIN XOAUTH2
		C: AUTH XOAUTH2 *
	` + rest
}

const (
	exchangeIMAP = "The Microsoft Exchange IMAP4 service is ready. [RgBSADAAUAAyADgAMQ==]"
	exchangeSMTP = "FR0P281CA0157.outlook.office365.com Microsoft ESMTP MAIL Service ready"
	gmailIMAP    = "Gimap ready for requests from 192.0.2.1 abc"
	gmailSMTP    = "smtp.gmail.com ESMTP abc - gsmtp"

	exchangeOpens = `S: P2 OK AUTHENTICATE completed.
		C: P3 CAPABILITY
		S: * CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+
		S: P3 OK CAPABILITY completed.
		C: P4 STATUS INBOX (UIDVALIDITY)
	`
	exchangeRefuses = "S: P2 NO AUTHENTICATE failed.\nC: P3 LOGOUT\nS: <EOF>"
	smtpTakes       = "S: 235 2.7.0 Authentication successful\nC: QUIT\nS: <EOF>"
	gmailRefuses    = "S: + eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIiwic2NvcGUiOiJodHRwczovL21haWwuZ29vZ2xlLmNvbS8ifQ==\nC: *\nS: P2 NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\nC: P3 LOGOUT\nS: <EOF>"
)

// Criterion: postern provider check tells apart, in the words of Exchange Online and Gmail, a token that is refused, a mailbox that does not open, SMTP AUTH that is off, a policy, throttling and a login that the web wants, and prints the command or the page that mends each, with the ids of the application filled in.
func TestProviderCheckNamesWhatMends(t *testing.T) {
	const fullAccess = "Add-MailboxPermission -Identity scanner@contoso.example -User " + testObjectID + " -AccessRights FullAccess"
	const principal = "New-ServicePrincipal -AppId " + testClientID + " -ObjectId " + testObjectID
	for _, test := range []struct {
		name, kind, account string
		roles               string // of the token
		imap, smtp          []string
		want                []string // in the output
		absent              []string
	}{
		{
			name: "a token that Exchange refuses", kind: "microsoft", roles: `"IMAP.AccessAsApp"`,
			imap: []string{imapAnswer(exchangeIMAP, exchangeRefuses), imapAnswer(exchangeIMAP, exchangeRefuses)},
			smtp: []string{
				smtpAnswer(exchangeSMTP, "S: 535 5.7.3 Authentication unsuccessful [FR0P281CA0157 2026-11-29T00:00:00.000Z 08DE]\nC: QUIT\nS: <EOF>"),
				smtpAnswer(exchangeSMTP, "S: 535 5.7.3 Authentication unsuccessful [FR0P281CA0157 2026-11-29T00:00:00.000Z 08DE]\nC: QUIT\nS: <EOF>"),
			},
			want: []string{
				"imap as scanner@contoso.example: the login is refused", principal, "submission as scanner@contoso.example: the login is refused",
				`New-ManagementRoleAssignment -Role "Application SMTP.SendAsApp" -App ` + testObjectID, "Test-ServicePrincipalAuthorization -Identity " + testObjectID + " -Resource scanner@contoso.example",
			},
			absent: []string{"adminconsent", "Set-CASMailbox"},
		},
		{
			name: "no consent", kind: "microsoft", roles: "",
			imap: []string{imapAnswer(exchangeIMAP, exchangeRefuses), imapAnswer(exchangeIMAP, exchangeRefuses)},
			smtp: []string{smtpAnswer(exchangeSMTP, smtpTakes)},
			want: []string{
				"warning: without the permission IMAP.AccessAsApp", "the permission IMAP.AccessAsApp is missing",
				"https://login.microsoftonline.com/contoso.onmicrosoft.com/adminconsent?client_id=" + testClientID, "submission as scanner@contoso.example: ok",
			},
			absent: []string{principal},
		},
		{
			name: "a mailbox that does not open", kind: "microsoft", roles: `"IMAP.AccessAsApp"`,
			imap: []string{imapAnswer(exchangeIMAP, exchangeOpens+"S: P4 BAD User is authenticated but not connected.\nC: P5 LOGOUT\nS: <EOF>")},
			smtp: []string{smtpAnswer(exchangeSMTP, smtpTakes)},
			want: []string{"the login is accepted, and INBOX cannot be opened", fullAccess, "Set-CASMailbox -Identity scanner@contoso.example -ImapEnabled $true"},
		},
		{
			name: "throttled", kind: "microsoft", roles: `"IMAP.AccessAsApp"`,
			imap:   []string{imapAnswer(exchangeIMAP, "S: P2 BAD Request is throttled. Suggested Backoff Time: 299931 milliseconds\nC: P3 LOGOUT\nS: <EOF>")},
			smtp:   []string{smtpAnswer(exchangeSMTP, "S: 432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information.\nC: QUIT\nS: <EOF>")},
			want:   []string{"wait a few minutes: nothing is to be mended", "Exchange takes 3 connections at a time"},
			absent: []string{"New-", "Set-", "Add-"},
		},
		{
			name: "SMTP AUTH is off for the mailbox", kind: "microsoft", roles: `"IMAP.AccessAsApp", "SMTP.SendAsApp"`,
			imap:   []string{imapAnswer(exchangeIMAP, exchangeRefuses), imapAnswer(exchangeIMAP, exchangeRefuses)},
			smtp:   []string{smtpAnswer(exchangeSMTP, "S: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information.\nC: QUIT\nS: <EOF>")},
			want:   []string{"SMTP AUTH has to be on for the mailbox: Set-CASMailbox -Identity scanner@contoso.example -SmtpClientAuthenticationDisabled $false", "instead of a management scope"},
			absent: []string{"Set-TransportConfig"},
		},
		{
			name: "SMTP AUTH is off for the tenant", kind: "microsoft", roles: `"IMAP.AccessAsApp"`,
			imap: []string{imapAnswer(exchangeIMAP, exchangeRefuses), imapAnswer(exchangeIMAP, exchangeRefuses)},
			smtp: []string{smtpAnswer(exchangeSMTP, "S: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.\nC: QUIT\nS: <EOF>")},
			want: []string{"Set-CASMailbox -Identity scanner@contoso.example -SmtpClientAuthenticationDisabled $false", "Set-TransportConfig -SmtpClientAuthenticationDisabled $false"},
		},
		{
			name: "a policy", kind: "microsoft", roles: `"IMAP.AccessAsApp"`,
			imap: []string{imapAnswer(exchangeIMAP, exchangeRefuses), imapAnswer(exchangeIMAP, exchangeRefuses)},
			smtp: []string{smtpAnswer(exchangeSMTP, "S: 535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully. Contact your administrator.\nC: QUIT\nS: <EOF>")},
			want: []string{"sign-ins in Entra"},
		},
		{
			name: "a name that PowerShell would read", kind: "microsoft", account: "o'brien;x@contoso.example", roles: `"IMAP.AccessAsApp"`,
			imap: []string{imapAnswer(exchangeIMAP, exchangeOpens+"S: P4 BAD User is authenticated but not connected.\nC: P5 LOGOUT\nS: <EOF>")},
			smtp: []string{smtpAnswer(exchangeSMTP, smtpTakes)},
			want: []string{"-Identity 'o''brien;x@contoso.example' -User"},
		},
		{
			name: "Gmail refuses", kind: "google",
			imap: []string{imapAnswer(gmailIMAP, gmailRefuses), imapAnswer(gmailIMAP, gmailRefuses)},
			smtp: []string{
				smtpAnswer(gmailSMTP, "S: 535-5.7.8 Username and Password not accepted. For more information, go to\nS: 535 5.7.8  https://support.google.com/mail/?p=BadCredentials abc - gsmtp\nC: QUIT\nS: <EOF>"),
				smtpAnswer(gmailSMTP, "S: 535-5.7.8 Username and Password not accepted. For more information, go to\nS: 535 5.7.8  https://support.google.com/mail/?p=BadCredentials abc - gsmtp\nC: QUIT\nS: <EOF>"),
			},
			want: []string{"API controls, Manage Domain Wide Delegation"},
		},
		{
			name: "Gmail throttles", kind: "google",
			imap: []string{imapAnswer(gmailIMAP, "S: P2 NO [ALERT] Too many simultaneous connections. (Failure)\nC: P3 LOGOUT\nS: <EOF>")},
			smtp: []string{smtpAnswer(gmailSMTP, smtpTakes)},
			want: []string{"15 connections at a time", "submission as scanner@contoso.example: ok"},
		},
		{
			name: "Gmail wants the user", kind: "google",
			imap: []string{imapAnswer(gmailIMAP, "S: * NO [WEBALERT https://accounts.google.com/x] Web login required.\nS: P2 NO [ALERT] Please log in via your web browser: https://support.google.com/mail/accounts/answer/78754 (Failure)\nC: P3 LOGOUT\nS: <EOF>")},
			smtp: []string{smtpAnswer(gmailSMTP, smtpTakes)},
			want: []string{"https://mail.google.com once"},
		},
		{
			name: "IMAP is off at Gmail", kind: "google",
			imap: []string{imapAnswer(gmailIMAP, "S: P2 NO [ALERT] IMAP access is disabled for your domain. Please contact your domain administrator for questions about this feature. (Failure)\nC: P3 LOGOUT\nS: <EOF>")},
			smtp: []string{smtpAnswer(gmailSMTP, smtpTakes)},
			want: []string{"End User Access, POP and IMAP access"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			account := test.account
			if account == "" {
				account = "scanner@contoso.example"
			}
			payload := fmt.Sprintf(`{"appid":%q,"oid":%q,"roles":[%s]}`, testClientID, testObjectID, test.roles)
			token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".signature"
			endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(map[string]any{"token_type": "Bearer", "expires_in": 3599, "access_token": token})
			}))
			t.Cleanup(endpoint.Close)
			cfg := providerConfig(t, test.kind, endpoint.URL, scripted(t, test.imap...), scripted(t, test.smtp...))
			var out strings.Builder
			right, err := checkProvider(t.Context(), cfg, nil, "contoso", account, &out)
			if err != nil || right {
				t.Fatalf("%v, %v, want no error and that it is not right\n%s", right, err, out.String())
			}
			for _, want := range append(test.want, "token: ok") {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
			for _, absent := range append(test.absent, token, "signature") {
				if strings.Contains(out.String(), absent) {
					t.Errorf("%q in\n%s", absent, out.String())
				}
			}
		})
	}
}

// providerConfig has a backend that takes the tokens of the provider contoso.
func providerConfig(t *testing.T, kind, tokenURL, imap, smtp string) *configs.Config {
	t.Helper()
	dir := t.TempDir()
	client := `tenant: contoso.onmicrosoft.com, client_id: ` + testClientID + `, client_secret_file: secret`
	if kind == "google" {
		client = "key_file: sa.json"
	}
	for name, content := range map[string]string{
		"secret": "abc8Q~planted", "state.key": "dGhlIGtleSBvZiBhIHRlc3QgaGFzIDMyIG9jdGV0cyE=", "sa.json": serviceAccountKey(t),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := configs.Parse(filepath.Join(dir, "test.yaml"), fmt.Appendf(nil, baseConfig+`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {m365: {token: contoso, imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
providers: {contoso: {kind: %s, token_url: %q, domains: [contoso.example], %s}}
passwords: {devices: true}
state: {path: state, key_file: state.key}
control: {socket: off}
`, imap, smtp, kind, tokenURL, client))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// serviceAccountKey returns a key file of a Google service account.
func serviceAccountKey(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	octets, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "postern@project.iam.gserviceaccount.example", "private_key_id": "k1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(octets)
}
