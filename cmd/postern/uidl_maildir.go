package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/crawl"
	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/ledger"
)

// A maildirs flag names the maildirs of accounts.
type maildirs struct {
	path string // with {user}, {local} and {domain}
	ids  string
}

// flags adds the flags to cmd.
func (m *maildirs) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&m.path, "maildir", "", "the maildir that was the old server's, and is the new one's; a `path` with {user}, {local} or {domain}")
	var kinds []string
	for _, ids := range oldserver.AllIDs() {
		kinds = append(kinds, string(ids))
	}
	f.StringVar(&m.ids, "ids", "", "with --maildir: the `kind` of unique ids that the old server has shown: "+
		enumerate(kinds, "or")+"; default: courier or saved, whichever is there")
	_ = cmd.RegisterFlagCompletionFunc("ids", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp))
}

// of returns the maildir of a user.
func (m *maildirs) of(user string) (string, error) {
	local, domain, _ := strings.Cut(user, "@")
	for name, value := range map[string]string{"{user}": user, "{local}": local, "{domain}": domain} {
		if !strings.Contains(m.path, name) {
			continue
		}
		if value == "" || value == "." || value == ".." || strings.ContainsAny(value, "/\x00") {
			return "", fmt.Errorf("user %q gives no folder for %s in --maildir", user, name)
		}
	}
	return strings.NewReplacer("{user}", user, "{local}", local, "{domain}", domain).Replace(m.path), nil
}

// check returns an error unless the flags fit those of c.
func (m *maildirs) check(c *crawler) error {
	if m.ids != "" && !slices.Contains(oldserver.AllIDs(), oldserver.IDs(m.ids)) {
		return fmt.Errorf("--ids: %q is not courier, saved, guid or filename", m.ids)
	}
	if c.user == "" && c.list == "" {
		return errors.New("--maildir needs --user or --list")
	}
	if c.list != "" && !strings.Contains(m.path, "{") {
		return errors.New("--maildir with --list needs {user}, {local} or {domain} in the path: each account has its own maildir")
	}
	return nil
}

// importMaildirs carries over the UIDLs in the files of all accounts. It connects to no
// server.
func (c *crawler) importMaildirs(cmd *cobra.Command, m *maildirs, path string, dry bool) error {
	if err := m.check(c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	format, err := uidl.Parse(cfg.POP3.UIDL)
	if err != nil {
		return err
	}
	names, mistakes := service.NewAccounts(cfg)
	if mistakes != nil {
		return mistakes
	}
	accounts, err := c.named(cmd, false)
	if err != nil {
		return err
	}
	return visitAll(ctx, cmd, c, accounts, strings.TrimSpace(importName(dry)+" --maildir "+m.path+" "+m.ids), newCarrying(dry), func(ctx context.Context, a crawl.Account) (result carried, err error) {
		account, err := names.Account(a.User)
		if err != nil {
			return result, err
		}
		folder, err := m.of(a.User)
		if err != nil {
			return result, err
		}
		var record *uidl.Record
		var report oldserver.Report
		err = stored.AsSelf(func() (err error) { // the owner of the state may not read it
			record, report, err = oldserver.CarryMaildir(folder, oldserver.IDs(m.ids), format)
			return err
		})
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: run this command as root", err)
		}
		if err != nil {
			return result, err
		}
		if result.Report = report; !result.recordable(record) || dry {
			return result, nil
		}
		err = result.record(ctx, cfg, account, record, ledger.ByMaildir)
		return result, err
	})
}
