package main

import (
	"context"
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
		Args:  cobra.NoArgs,
	}
	base := cmd.Flags().Int("port-base", 1000, "ports are this `number` more than 993, 995, 465 and 930")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		return demo(ctx, *base, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// demo runs Postern as usual, in front of servers in memory.
func demo(ctx context.Context, base int, stdout, stderr io.Writer) error {
	if base < 0 || base > 65535-995 {
		return fmt.Errorf("--port-base is %d, but ports end at 65535: 0 to %d", base, 65535-995)
	}
	mail := memserver.New(memserver.Options{
		Accounts: []memserver.Account{{User: "demo", Password: "demo"}},
		// Each demo has new messages, so the UIDs of an earlier demo are not valid.
		UIDValidity: uint32(time.Now().Unix()),
	})
	defer func() { _ = mail.Close() }()
	for _, sample := range memserver.Samples() {
		if err := mail.Append("demo", sample); err != nil {
			return err
		}
	}
	imap, err := serveInMemory(mail.ServeIMAP)
	if err != nil {
		return err
	}
	submission, err := serveInMemory(mail.ServeSMTP)
	if err != nil {
		return err
	}
	cfg, err := configs.Parse("demo", fmt.Appendf(nil, `
hostname: localhost
listeners:
  - {protocol: imap, address: "127.0.0.1:%d"}
  - {protocol: pop3, address: "127.0.0.1:%d"}
  - {protocol: submission, address: "127.0.0.1:%d"}
tls: {certificates: [{cert: memory, key: memory}]}
backends:
  memory:
    imap: {address: %q, tls: none}
    submission: {address: %q, tls: none}
timeouts: {shutdown: 1s}
metrics: {address: "127.0.0.1:%d"}
`, base+993, base+995, base+465, imap, submission, base+930))
	if err != nil {
		return err
	}
	cert, err := certs.SelfSigned("localhost")
	if err != nil {
		return err
	}
	store, err := certs.Static(cert)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	s := service.New(cfg, store, logs.New(stderr, cfg.Log.Format, level), level)
	s.Storage.OpenMemory()
	s.Ready = func([]proxy.Binding) { _, _ = fmt.Fprintf(stdout, welcome, base+995, base+993, base+465, base+930) }
	return s.Serve(ctx, cfg)
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
