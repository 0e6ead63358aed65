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

	"postern/proxy"
)

// maxPassword bounds a password, in octets.
const maxPassword = 4 << 10

// readPassword returns the first line of the file, or, if there is none, of
// standard input. What is typed is not shown.
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
	if f, ok := in.(*os.File); ok && isTerminal(f) {
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
		return nil, fmt.Errorf("read password: it is longer than %d octets", maxPassword)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read password: %w", err)
	}
	password := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")) // spaces belong to it
	if len(password) == 0 {
		return nil, errors.New("read password: the line is empty")
	}
	return proxy.NewSecret(password), nil
}

// typed asks at a terminal. The terminal shows again what is typed when ctx
// ends, or the password has been typed.
func typed(ctx context.Context, out io.Writer, terminal *os.File, user string) (*proxy.Secret, error) {
	restore, err := hideTyping(terminal)
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	defer func() {
		restore()
		_, _ = fmt.Fprintln(out) // the line end was not shown, either
	}()
	_, _ = fmt.Fprintf(out, "Password of %s: ", user)
	type result struct {
		secret *proxy.Secret
		err    error
	}
	done := make(chan result, 1)
	go func() { // it ends with the process: a read from a terminal cannot be interrupted
		secret, err := firstLine(terminal)
		done <- result{secret, err}
	}()
	select {
	case r := <-done:
		return r.secret, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
