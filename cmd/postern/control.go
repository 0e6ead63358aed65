package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
	"postern/configs"
	"postern/proxy/admin"
)

// configFlag adds --config to cmd.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("config", "c", "/etc/postern/postern.yaml", "the configuration `file`")
}

// requestChange sends a request for a change, such as a reload, to the Postern that
// runs with the configuration at path. signal is the alternative without a socket.
func requestChange(ctx context.Context, path, what, signal string) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if cfg.Control.Socket == "" {
		return fmt.Errorf("control.socket is off: send %s, and look into the log", signal)
	}
	var answer service.Outcome
	if err := admin.Call(ctx, cfg.Control.Socket, what, struct{}{}, &answer); err != nil {
		return err
	}
	if answer.Mistakes != nil {
		return answer.Mistakes
	}
	return nil
}

// callRunning sends a request to the Postern that runs with the configuration at path,
// and calls each for every value of the answer.
func callRunning[Out any](ctx context.Context, path, name string, in any, each func(Out) error) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if cfg.Control.Socket == "" {
		return errors.New("control.socket is off: this Postern can not be asked")
	}
	return admin.CallEach(ctx, cfg.Control.Socket, name, in, each)
}

// callGuard sends a request about the guard to the running Postern: the guard is in
// that process only.
func callGuard[Out any](cmd *cobra.Command, path, name string, in any, each func(Out) error) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if cfg.Control.Socket == "" {
		return fmt.Errorf("%w that could be asked: control.socket is off", admin.ErrNotRunning)
	}
	return admin.CallEach(cmd.Context(), cfg.Control.Socket, "guard/"+name, in, each)
}

// accountNamed returns the account for a login name.
func accountNamed(cfg *configs.Config, name string) (string, error) {
	accounts, mistakes := service.NewAccounts(cfg)
	if mistakes != nil {
		return "", mistakes
	}
	return accounts.Account(name)
}

// confirm prints the consequence and returns an error unless the operator types yes.
func confirm(cmd *cobra.Command, consequence string) error {
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s\nType yes to go on: ", consequence)
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1<<10)).ReadString('\n')
	if strings.TrimSpace(answer) == "yes" {
		return nil
	}
	if err != nil {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr())
	}
	return errors.New("nothing was done: the answer was not yes (scripts say --yes)")
}
