package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/wire"
)

// A Book is the records of UIDLs, for who looks after them.
type Book interface {
	Store
	// Scan calls each for the keys with a prefix, in order.
	Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error
}

// A Recorded is the record of one account, as it is exported and imported.
type Recorded struct {
	Account string       `json:"account"`
	Record  *uidl.Record `json:"record"`
}

// Export calls each for every record that can be read, in the order of
// accounts, until it returns an error. The accounts whose record cannot be
// read are in the error, which comes after all others.
func Export(ctx context.Context, book Book, each func(Recorded) error) error {
	var unreadable error
	err := book.Scan(ctx, "", func(key string, value []byte) error {
		account, ok := strings.CutSuffix(key, inboxOf)
		if !ok {
			return nil
		}
		record, err := uidl.Decode(value)
		if err != nil {
			unreadable = errors.Join(unreadable, fmt.Errorf("%s: %w", account, err))
			return nil
		}
		return each(Recorded{account, record})
	})
	return errors.Join(err, unreadable)
}

// Import makes what it is given the record of the account, whatever was there.
func Import(ctx context.Context, book Book, r Recorded) error {
	if r.Account == "" || strings.ContainsRune(r.Account, 0) || r.Record == nil {
		return errors.New("import UIDLs: there is no account or no record")
	}
	if err := r.Record.Check(); err != nil {
		return fmt.Errorf("import UIDLs of %s: %w", r.Account, err)
	}
	return book.Put(ctx, key(r.Account), r.Record.Encode())
}

// Forget removes the records of the accounts that match, and returns how many
// they were: their UIDLs become what the present format computes, so that
// clients may download all mail again.
func Forget(ctx context.Context, book Book, match func(account string) bool) (n int, err error) {
	var keys []string
	err = book.Scan(ctx, "", func(key string, _ []byte) error {
		if account, ok := strings.CutSuffix(key, inboxOf); ok && match(account) {
			keys = append(keys, key)
		}
		return nil
	})
	for _, key := range keys {
		if err != nil {
			break
		}
		if err = book.Put(ctx, key, nil); err == nil {
			n++
		}
	}
	return n, err
}

// UIDs logs l in and returns the UIDs of INBOX, ascending, and its UIDVALIDITY.
// It changes nothing, and remembers nothing.
func (b *Backend) UIDs(ctx context.Context, l *proxy.Login) (uids []uint32, uidValidity uint32, err error) {
	conn, capabilities, err := b.Dial(ctx, l)
	if err != nil {
		return nil, 0, err
	}
	in := newInbox(conn, capabilities, b.timeout())
	defer func() { _ = in.close() }()
	v, err := in.look(ctx, false)
	if err != nil {
		return nil, 0, err
	}
	all, err := in.all(ctx)
	if err != nil {
		return nil, 0, err
	}
	numbers, _ := all.Nums()
	for _, uid := range numbers {
		uids = append(uids, uint32(uid))
	}
	return uids, v.uidValidity, nil
}

const (
	maxReply = 512 // octets of a line, RFC 2449 section 4; a UIDL listing's are shorter
	oldTime  = time.Minute
)

// ShownUIDLs asks a POP3 server for the UIDLs of a maildrop and takes leave.
// conn is new; the password goes over it as it is, so it must be TLS. It ends
// within a minute.
func ShownUIDLs(ctx context.Context, conn net.Conn, user string, secret *proxy.Secret) ([]string, error) {
	if strings.ContainsAny(user, "\r\n") || strings.ContainsAny(string(secret.Reveal()), "\r\n") {
		return nil, errors.New("there is a line end in user or password")
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(oldTime)); err != nil {
		return nil, err
	}
	o := old{conn: conn, in: bufio.NewReaderSize(conn, maxReply)}
	o.reply("greeting")
	o.ask("USER", user)
	o.ask("PASS", string(secret.Reveal()))
	o.ask("UIDL", "")
	var ids []string
	for line := o.line(); o.err == nil && line != "."; line = o.line() {
		_, id, _ := strings.Cut(line, " ")
		id, _, _ = strings.Cut(strings.TrimSpace(id), " ")
		if len(ids) == maxMessages {
			o.err = errTooMany
		}
		ids = append(ids, id)
	}
	if o.err != nil {
		return nil, fmt.Errorf("UIDLs of the old server: %w", o.err)
	}
	o.ask("QUIT", "")
	return ids, nil
}

// An old is a conversation with a POP3 server. After the first error there is
// no more.
type old struct {
	conn net.Conn
	in   *bufio.Reader
	err  error
}

func (o *old) ask(command, argument string) {
	if o.err != nil {
		return
	}
	if _, o.err = io.WriteString(o.conn, strings.TrimSpace(command+" "+argument)+"\r\n"); o.err == nil {
		o.reply(command)
	}
}

func (o *old) reply(command string) {
	if line := o.line(); o.err == nil && !strings.HasPrefix(line, "+OK") {
		o.err = fmt.Errorf("%s: server said %q", command, line)
	}
}

func (o *old) line() string {
	if o.err != nil {
		return ""
	}
	var b []byte
	if b, o.err = o.in.ReadSlice('\n'); o.err != nil {
		return ""
	}
	line, _ := wire.TrimLine(b)
	return string(line)
}
