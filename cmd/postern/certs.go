package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/certs"
)

func certsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "List the names that have certificates, from where, until when, and what is wrong with them",
		Args:  cobra.NoArgs,
	}
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "one JSON object a line, with all that is wrong and what to do")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		if *asJSON {
			lines := json.NewEncoder(cmd.OutOrStdout())
			return listCerts(cmd.Context(), cfg, func(l certs.Entry) error { return lines.Encode(l) })
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "NAME\tSOURCE\tISSUER\tEXPIRES (UTC)\tRENEWAL (UTC)\tSTATE")
		err = listCerts(cmd.Context(), cfg, func(l certs.Entry) error {
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Name, orDash(l.Source), orDash(l.Issuer), date(l.NotAfter), date(l.Renewal), l.State)
			return err
		})
		return errors.Join(err, t.Flush())
	}
	cmd.AddCommand(renewCommand(), obtainCommand())
	return cmd
}

// listCerts requests the certificates from the running Postern. If none runs, listCerts
// opens the files.
func listCerts(ctx context.Context, cfg *configs.Config, each func(certs.Entry) error) error {
	err := admin.ErrNotRunning
	if cfg.Control.Socket != "" {
		err = admin.CallEach(ctx, cfg.Control.Socket, service.AskCerts, struct{}{}, each)
	}
	if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	return asOwnerOfStorage(cfg, func() error {
		store := certs.Inspect(service.CertificateSources(cfg))
		if err := store.Open(slog.New(slog.DiscardHandler), proxy.Observers{}); err != nil {
			return err
		}
		store.Preload(ctx)
		for _, l := range store.List(ctx) {
			if err := each(l); err != nil {
				return err
			}
		}
		return nil
	})
}

// asOwnerOfStorage calls f. Root calls it as the owner of the certificates by ACME, if there
// is a storage: the service has to read what f writes there.
func asOwnerOfStorage(cfg *configs.Config, f func() error) error {
	if cfg.TLS.ACME == nil {
		return f()
	}
	return stored.AsOwner(cfg.TLS.ACME.Storage, f)
}

// openStore opens the certificates of cfg for a command.
func openStore(cfg *configs.Config) (*certs.Store, error) {
	store, err := certs.New(service.CertificateSources(cfg))
	if err != nil {
		return nil, err
	}
	return store, store.Open(slog.New(slog.DiscardHandler), proxy.Observers{})
}

func renewCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "renew NAME",
		Short: "Get a new certificate now for a name that has one by ACME",
		Args:  cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		err = admin.ErrNotRunning
		if cfg.Control.Socket != "" {
			err = admin.Call(cmd.Context(), cfg.Control.Socket, service.AskRenew, args[0], &struct{}{})
		}
		if errors.Is(err, admin.ErrNotRunning) {
			err = asOwnerOfStorage(cfg, func() error {
				store, err := openStore(cfg)
				if err != nil {
					return err
				}
				return store.Renew(cmd.Context(), args[0])
			})
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has a new certificate\n", args[0])
		return err
	}
	return cmd
}
