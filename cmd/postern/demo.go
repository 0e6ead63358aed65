package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/memserver"
)

func demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Serve a mailbox in memory, to try Postern without a mail server",
		Long: `Serve a mailbox in memory, to try Postern without a mail server. The commands that
are printed work as they stand.

With --oauth the mail server takes no passwords but tokens of OAuth, as Exchange
Online and Gmail do. An authorization server in memory gives them to Postern, and the
mail program has a device password that Postern has made. The configuration and the
state are in a temporary folder, which is removed at the end; other commands of
postern work on them with --config.`,
		Args: cobra.NoArgs,
	}
	base := cmd.Flags().Int("port-base", 1000, "ports are this `number` more than 993, 995, 465 and 930")
	oauth := cmd.Flags().Bool("oauth", false, "the mail server takes tokens of OAuth, and no passwords")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		if *base < 0 || *base > 65535-995 {
			return fmt.Errorf("--port-base is %d, but ports end at 65535: 0 to %d", *base, 65535-995)
		}
		if *oauth {
			return demoOAuth(ctx, *base, cmd.OutOrStdout(), cmd.ErrOrStderr())
		}
		return demo(ctx, *base, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// demo runs Postern as usual, in front of servers in memory.
func demo(ctx context.Context, base int, stdout, stderr io.Writer) error {
	mail, err := startMail(memserver.Options{Accounts: []memserver.Account{{User: "demo", Password: "demo"}}})
	if err != nil {
		return err
	}
	defer func() { _ = mail.Close() }()
	cfg, err := configs.Parse("demo", fmt.Appendf(nil, `
tls: {certificates: [{cert: memory, key: memory}]}
backends:
  memory:
    imap: {address: %q, tls: none}
    submission: {address: %q, tls: none}
`+demoListeners, mail.imap, mail.submission, base+993, base+995, base+465, base+930))
	if err != nil {
		return err
	}
	cert, err := certs.SelfSigned("localhost")
	if err != nil {
		return err
	}
	s, err := demoService(cfg, cert, stderr)
	if err != nil {
		return err
	}
	s.Storage.OpenMemory()
	s.Ready = func([]proxy.Binding) { _, _ = fmt.Fprintf(stdout, welcome, base+995, base+993, base+465, base+930) }
	return s.Serve(ctx, cfg)
}

// demoListeners is the end of a configuration, with the ports of IMAP, POP3, submission and
// metrics.
const demoListeners = `
hostname: localhost
listeners:
  - {protocol: imap, address: "127.0.0.1:%d"}
  - {protocol: pop3, address: "127.0.0.1:%d"}
  - {protocol: submission, address: "127.0.0.1:%d"}
timeouts: {shutdown: 1s}
metrics: {address: "127.0.0.1:%d"}
`

func demoService(cfg *configs.Config, cert tls.Certificate, stderr io.Writer) (*service.Service, error) {
	store, err := certs.Static(cert)
	if err != nil {
		return nil, err
	}
	level := new(slog.LevelVar)
	return service.New(cfg, store, logs.New(stderr, cfg.Log.Format, level), level), nil
}

// A mailInMemory is a mail server in memory, and its addresses.
type mailInMemory struct {
	*memserver.Server
	imap, submission string
}

// startMail starts a mail server, in which each account has the samples.
func startMail(o memserver.Options) (m mailInMemory, err error) {
	// Each demo has new messages, so the UIDs of an earlier demo are not valid.
	o.UIDValidity = uint32(time.Now().Unix())
	m.Server = memserver.New(o)
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	for _, account := range o.Accounts {
		for _, sample := range memserver.Samples() {
			if err := m.Append(account.User, sample); err != nil {
				return m, err
			}
		}
	}
	if m.imap, err = serveInMemory(m.ServeIMAP); err != nil {
		return m, err
	}
	m.submission, err = serveInMemory(m.ServeSMTP)
	return m, err
}

const welcome = `
Postern stands in front of a mail server in memory. The account is demo, the
password demo, the certificate self-signed (hence --insecure). Try:

  curl --insecure --user demo:demo pop3s://127.0.0.1:%[1]d/            # list, by POP3
  curl --insecure --user demo:demo pop3s://127.0.0.1:%[1]d/1           # fetch message 1, by POP3
  curl --insecure --user demo:demo 'imaps://127.0.0.1:%[2]d/INBOX;MAILINDEX=1'   # fetch it by IMAP
  printf 'Subject: hello\r\n\r\nIt works.\r\n' | curl --insecure --user demo:demo --url smtps://127.0.0.1:%[3]d \
    --mail-from demo@localhost --mail-rcpt demo@localhost --upload-file -   # send; the list then shows one more
  curl http://127.0.0.1:%[4]d/metrics                                  # what Prometheus sees
and open http://127.0.0.1:%[4]d/ in a browser: the status page.

Ctrl-C ends it. What happens:

`

// serveInMemory serves on a free port of the loopback and returns its address.
func serveInMemory(serve func(net.Listener) error) (address string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = serve(ln) }() // ends with the server's Close
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(portOf(ln))), nil
}

// portOf returns the port of ln.
func portOf(ln net.Listener) int {
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}
