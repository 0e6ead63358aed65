package crawl

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"

	"postern/proxy"
)

const (
	// maxList bounds the accounts of a list, and maxField the octets of a user or a
	// password.
	maxList  = 1 << 20
	maxField = 4 << 10
)

// ReadList reads accounts from a CSV file with the columns user and password, or only user
// if no passwords are needed. Empty lines and lines that begin with # are passed over. Errors have
// name and line, never a password.
func ReadList(r io.Reader, name string, passwords bool) (accounts []Account, err error) {
	in := csv.NewReader(bufio.NewReaderSize(r, 64<<10))
	in.Comment, in.ReuseRecord, in.FieldsPerRecord, in.LazyQuotes = '#', true, -1, true
	first := make(map[string]int)
	for {
		fields, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if parse := (*csv.ParseError)(nil); errors.As(err, &parse) {
			return nil, fmt.Errorf("%s:%d: %w", name, parse.Line, parse.Err)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		line, _ := in.FieldPos(0)
		a, err := account(fields, passwords)
		if before := first[a.User]; err == nil && before != 0 {
			err = fmt.Errorf("%s is in line %d already", a.User, before)
		}
		if err == nil && len(accounts) == maxList {
			err = fmt.Errorf("more than %d accounts", maxList)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, line, err)
		}
		first[a.User] = line
		accounts = append(accounts, a)
	}
	if len(accounts) == 0 {
		return nil, fmt.Errorf("%s: there is no account in it", name)
	}
	return accounts, nil
}

func account(fields []string, passwords bool) (a Account, err error) {
	user := strings.TrimSpace(fields[0])
	switch {
	case user == "":
		return a, errors.New("there is no user")
	case len(user) > maxField || strings.ContainsAny(user, "\x00\r\n"):
		return a, errors.New("the user is too long, or has a line end in it")
	case !passwords && len(fields) > 1:
		return a, fmt.Errorf("%d columns, want one: user (passwords are only for a list of --old without --master)", len(fields))
	case !passwords:
		return Account{User: user}, nil
	case len(fields) != 2:
		return a, fmt.Errorf("%d columns, want two: user and password (quote a password with a comma in it)", len(fields))
	case fields[1] == "" || len(fields[1]) > maxField || strings.ContainsAny(fields[1], "\x00\r\n"):
		return a, errors.New("there is no password, or it is too long, or has a line end in it")
	}
	return Account{User: user, Secret: proxy.NewSecret([]byte(fields[1]))}, nil
}
