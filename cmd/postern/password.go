package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/proxy"
)

// maxPassword bounds a password, in octets.
const maxPassword = 4 << 10

// readPassword returns the first line of the file or, without a file, of standard
// input. A terminal does not show the typed password.
func readPassword(ctx context.Context, cmd *cobra.Command, file, user string) (*proxy.Secret, error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		defer func() { _ = f.Close() }()
		return firstLine(f)
	}
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return typed(ctx, cmd.ErrOrStderr(), f, user)
	}
	return firstLine(in)
}

func firstLine(in io.Reader) (*proxy.Secret, error) {
	b := bufio.NewReaderSize(in, maxPassword)
	line, err := b.ReadSlice('\n')
	defer clear(line)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errLongPassword
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read password: %w", err)
	}
	return newPassword(line)
}

var errLongPassword = fmt.Errorf("read password: it is longer than %d bytes", maxPassword)

// newPassword returns the password in a line.
func newPassword(line []byte) (*proxy.Secret, error) {
	password := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")) // spaces belong to the password
	switch {
	case len(password) == 0:
		return nil, errors.New("read password: the line is empty")
	case len(password) > maxPassword:
		return nil, errLongPassword
	}
	return proxy.NewSecret(password), nil
}

// typed prompts for a password at a terminal. The terminal does not echo until the
// password has been typed, or ctx ends.
func typed(ctx context.Context, out io.Writer, terminal *os.File, user string) (*proxy.Secret, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	defer func() {
		_ = term.Restore(fd, before)
		_, _ = fmt.Fprintln(out) // the terminal did not echo the line end, either
	}()
	type result struct {
		secret *proxy.Secret
		err    error
	}
	done := make(chan result, 1)
	go func() { // the goroutine may end with the process only: a read from a terminal cannot be interrupted
		line, err := term.ReadPassword(fd)
		defer clear(line)
		if err != nil {
			done <- result{err: fmt.Errorf("read password: %w", err)}
			return
		}
		secret, err := newPassword(line)
		done <- result{secret, err}
	}()
	_, _ = fmt.Fprintf(out, "Password of %s: ", user)
	select {
	case r := <-done:
		return r.secret, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
