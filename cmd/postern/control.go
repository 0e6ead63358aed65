package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
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

// changeCommand completes a command that requests a change, such as a reload, from the
// running Postern. signal is the alternative without a socket.
func changeCommand(cmd *cobra.Command, what, signal string) *cobra.Command {
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print the result as one JSON object, with the mistakes")
	socket := cmd.Flags().String("control", "", "the control `socket` of the running Postern, if the configuration has another one by now")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		err := requestChange(cmd.Context(), *path, *socket, what, signal)
		mistakes, ok := errors.AsType[configs.Errors](err)
		if !*asJSON || err != nil && !ok {
			return err
		}
		result := changeResult{Done: err == nil, Mistakes: []jsonMistake{}}
		for _, m := range mistakes {
			result.Mistakes = append(result.Mistakes, jsonMistake{m.File, m.Line, m.Key, m.Text})
		}
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(result); err != nil {
			return err
		}
		if !result.Done {
			return exitStatus(1)
		}
		return nil
	}
	return cmd
}

// A changeResult is the result of a reload or an upgrade, in the form for output.
type changeResult struct {
	Done     bool          `json:"done"` // false: nothing has changed
	Mistakes []jsonMistake `json:"mistakes"`
}

// A jsonMistake is a configs.Error in the form for output.
type jsonMistake struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Key  string `json:"key"`
	Text string `json:"text"`
}

// requestChange sends a request for a change, such as a reload, to the Postern that
// runs with the configuration at path, or that has a control socket. signal is the
// alternative without a socket.
func requestChange(ctx context.Context, path, socket, what, signal string) error {
	if socket == "" {
		cfg, err := configs.Read(path)
		if err != nil {
			return err
		}
		if socket = cfg.Control.Socket; socket == "" {
			return fmt.Errorf("control.socket is off: send %s, and look into the log", signal)
		}
	}
	var answer service.Outcome
	err := admin.Call(ctx, socket, what, struct{}{}, &answer)
	if errors.Is(err, admin.ErrNotRunning) {
		if others := admin.Listening(filepath.Base(socket)); others != nil {
			return fmt.Errorf("%w; if state.path or control.socket has changed, restart Postern: a process listens at %s (postern %s --control %s asks it)",
				err, enumerate(others[:min(len(others), 20)], "and"), what, others[0])
		}
	}
	if err != nil {
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
		return errors.New("control.socket is off: the commands cannot reach the running Postern")
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
		return fmt.Errorf("control.socket is off: the commands cannot reach the running Postern")
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
	return errors.New("nothing was done: the answer was not yes (in scripts use --yes)")
}
