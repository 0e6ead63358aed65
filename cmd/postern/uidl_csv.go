package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"postern/bridge/oldserver"
	"postern/cmd/postern/internal/crawl"
	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/metrics/ledger"
)

// maxCSV bounds the octets of a list of messages.
const maxCSV = 1 << 30

// importCSV carries over the UIDLs of one account from a list of its messages.
func (c *crawler) importCSV(cmd *cobra.Command, file, path string, dry bool) error {
	if c.user == "" {
		return errors.New("--csv needs --user")
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	list, err := readCSV(file)
	if err != nil {
		return err
	}
	if c.mailboxes, err = service.OpenMailboxes(cfg); err != nil {
		return err
	}
	accounts, err := c.accounts(ctx, cmd)
	if err != nil {
		return err
	}
	return visitAll(ctx, cmd, c, accounts, importName(dry)+" --csv "+file, newCarrying(dry), func(ctx context.Context, a crawl.Account) (result carried, err error) {
		mailbox, err := c.mailboxes.Find(ctx, a.User, c.loginName(c.newLogin, a.User), c.secret)
		if err != nil {
			return result, err
		}
		behind, err := mailbox.Read(ctx)
		if err != nil {
			return result, err
		}
		defer func() { _ = behind.Close() }()
		record, report, err := oldserver.CarryList(ctx, list, service.InboxOf(behind), behind.Headers, mailbox.Format())
		if err != nil {
			return result, err
		}
		if result.Report = report; !result.recordable(record) || dry {
			return result, nil
		}
		err = result.record(ctx, cfg, mailbox.Account, record, ledger.ByCSV)
		return result, err
	})
}

func readCSV(path string) ([]oldserver.Listed, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return oldserver.ReadList(io.LimitReader(f, maxCSV), path)
}
