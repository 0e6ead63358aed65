package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	mostAnswer = 1 << 20 // octets of an answer
	mostToken  = 1 << 14 // octets of a token
	mostLife   = 24 * time.Hour
)

// NewTransport returns a transport for authorization servers. roots nil: the system's.
func NewTransport(roots *x509.CertPool) http.RoundTripper {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// An answer is a token.
type answer struct {
	token *proxy.Secret
	life  time.Duration
}

// ask requests a token at the token endpoint: RFC 6749 section 5. The transport is asked,
// and no http.Client: a redirect would take the credentials elsewhere.
func (p *Provider) ask(ctx context.Context, subject string) (answer, error) {
	form, err := p.Grant.form(p.TokenURL, subject, time.Now())
	if err != nil {
		return answer{}, p.fail(Configuration, err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, p.fail(Configuration, "token_url is no URL")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "postern")
	resp, err := p.Transport.RoundTrip(req)
	if err != nil {
		return answer{}, p.fail(Temporary, "the token endpoint cannot be reached: "+bare(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer+1))
	defer clear(body)
	switch {
	case err != nil:
		return answer{}, p.fail(Temporary, "the answer of the token endpoint ended early: "+bare(err))
	case len(body) > mostAnswer:
		return answer{}, p.fail(Temporary, fmt.Sprintf("the answer of the token endpoint has more than %d octets", mostAnswer))
	}
	return p.parse(resp, body)
}

// bare returns the text of err, of a connection or of TLS. Errors about HTTP repeat what the
// server has sent, which may be the request: they are not shown.
func bare(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %v", requestTimeout)
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	const most = 300 // an error of a certificate may have as many names as the server likes
	text := err.Error()
	_, network := errors.AsType[net.Error](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case network, certificate, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.HasPrefix(text, "tls: "):
		return wire.Excerpt(text, most)
	}
	return "the answer is not valid HTTP"
}

func (p *Provider) parse(resp *http.Response, body []byte) (answer, error) {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	wait := retryAfter(resp.Header.Get("Retry-After"), time.Now())
	if resp.StatusCode != http.StatusOK {
		var r refusal
		if kind != "application/json" || json.Unmarshal(body, &r) != nil || r.Error == "" {
			f := p.fail(Temporary, fmt.Sprintf("the token endpoint answered %d without an error of OAuth", resp.StatusCode))
			f.RetryAfter = wait
			if resp.StatusCode/100 == 3 {
				f.Advice = "a redirect is not followed: write its end as token_url"
			}
			return answer{}, f
		}
		f := p.refused(resp.StatusCode, r, wait)
		if skew := clockDifference(resp.Header.Get("Date"), time.Now()); f.Class != Temporary && p.Grant.signs() && skew.Abs() > clockSkew {
			f.Advice = strings.TrimPrefix(fmt.Sprintf("%s; %s: it differs from the token endpoint's by %v", strings.TrimSuffix(f.Advice, clockAdvice), clockAdvice, skew.Abs()), "; ")
		}
		return answer{}, f
	}
	var good struct {
		Token string      `json:"access_token"`
		Type  string      `json:"token_type"`
		Life  json.Number `json:"expires_in"` // some servers write a string
	}
	if kind != "application/json" || json.Unmarshal(body, &good) != nil {
		return answer{}, p.fail(Temporary, "the token endpoint answered 200 without JSON that can be read")
	}
	switch {
	case good.Token == "":
		return answer{}, p.fail(Temporary, "the token endpoint answered 200 without a token")
	case len(good.Token) > mostToken || strings.ContainsFunc(good.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return answer{}, p.fail(Temporary, "the token endpoint's token is too long, or has characters that no bearer token has (RFC 6750 section 2.1)")
	case good.Type != "" && !strings.EqualFold(good.Type, "bearer"):
		return answer{}, p.fail(Configuration, "the token endpoint gives tokens that are no bearer tokens")
	}
	life := defaultLife
	if seconds, err := strconv.ParseFloat(string(good.Life), 64); err == nil && seconds > 0 {
		life = time.Duration(min(seconds, mostLife.Seconds()) * float64(time.Second))
	}
	return answer{token: proxy.NewSecret([]byte(good.Token)), life: life}, nil
}

// clockDifference returns how much the server's clock is ahead of now by the header Date;
// 0: not known.
func clockDifference(date string, now time.Time) time.Duration {
	at, err := http.ParseTime(date)
	if err != nil {
		return 0
	}
	return at.Sub(now).Round(time.Second)
}

// retryAfter returns the value of the header Retry-After: RFC 9110 section 10.2.3.
func retryAfter(value string, now time.Time) time.Duration {
	seconds, err := strconv.ParseUint(value, 10, 31)
	if err == nil || errors.Is(err, strconv.ErrRange) { // then it is the largest number
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
