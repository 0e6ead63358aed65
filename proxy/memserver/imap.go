package memserver

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-message/textproto"
)

const delimiter = '/'

func (s *Server) newIMAP(config *tls.Config, logger *log.Logger) *imapserver.Server {
	return imapserver.New(&imapserver.Options{
		NewSession:   s.newSession,
		TLSConfig:    config,
		InsecureAuth: true,
		Logger:       logger,
		// SASL-IR, LITERAL-, ENABLE, IDLE and UNSELECT are always on. IMAP4rev2
		// is not offered: few servers do, and clients take other paths with it.
		Caps: imap.CapSet{
			imap.CapIMAP4rev1:    {},
			imap.CapNamespace:    {},
			imap.CapUIDPlus:      {},
			imap.CapESearch:      {},
			imap.CapListExtended: {},
			imap.CapListStatus:   {},
			imap.CapMove:         {},
			imap.CapStatusSize:   {},
			imap.CapSpecialUse:   {},
			imap.CapLiteralPlus:  {},
		},
	})
}

func (s *Server) newSession(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
	if !s.conns.begin() {
		return nil, nil, &imap.Error{Type: imap.StatusResponseTypeBye, Text: "Closing"}
	}
	plain := &session{server: s}
	if s.token != nil {
		return &tokenSession{plain}, nil, nil
	}
	return plain, nil, nil
}

func errNo(code imap.ResponseCode, format string, args ...any) error {
	return &imap.Error{Type: imap.StatusResponseTypeNo, Code: code, Text: fmt.Sprintf(format, args...)}
}

// A user has mailboxes.
type user struct {
	password string

	mu          sync.Mutex
	mailboxes   map[string]*mailbox
	subscribed  map[string]bool
	uidValidity uint32 // of the next mailbox
}

// special are the special-use attributes of mailboxes, by name: RFC 6154.
var special = map[string]imap.MailboxAttr{"Sent": imap.MailboxAttrSent, "Trash": imap.MailboxAttrTrash}

func newUser(password string, uidValidity uint32) *user {
	u := &user{
		password:    password,
		mailboxes:   make(map[string]*mailbox),
		subscribed:  make(map[string]bool),
		uidValidity: uidValidity,
	}
	u.create("INBOX")
	for _, name := range slices.Sorted(maps.Keys(special)) {
		u.create(name)
	}
	return u
}

// create makes a mailbox. An existing one is replaced, with another UIDVALIDITY.
func (u *user) create(name string) {
	u.mailboxes[name] = newMailbox(u.uidValidity)
	u.subscribed[name] = true
	u.uidValidity++
}

func (u *user) mailbox(name string) (*mailbox, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	box, ok := u.mailboxes[name]
	if !ok {
		return nil, errNo(imap.ResponseCodeNonExistent, "No such mailbox")
	}
	return box, nil
}

// A session is one IMAP connection. It implements imapserver's Session,
// SessionMove, SessionNamespace and SessionAppendLimit, whose documentation
// applies.
type session struct {
	server *Server
	*user
	box      *mailbox // selected
	view     *imapserver.SessionTracker
	readOnly bool
}

// Close ends the session.
func (s *session) Close() error {
	defer s.server.conns.end()
	if s.view != nil {
		s.view.Close()
	}
	return nil
}

// Login checks a password.
func (s *session) Login(name, password string) error {
	if !s.server.verify(name, password) {
		return imapserver.ErrAuthFailed
	}
	s.user = s.server.users[name]
	return nil
}

// AppendLimit returns the largest message that APPEND accepts, in bytes.
func (s *session) AppendLimit() uint32 { return MaxMessageSize }

// Namespace returns one personal namespace for all mailboxes.
func (s *session) Namespace() (*imap.NamespaceData, error) {
	return &imap.NamespaceData{Personal: []imap.NamespaceDescriptor{{Delim: delimiter}}}, nil
}

// Select begins a view of a mailbox.
func (s *session) Select(name string, options *imap.SelectOptions) (*imap.SelectData, error) {
	box, err := s.mailbox(name)
	if err != nil {
		return nil, err
	}
	data, view := box.selectData()
	s.box, s.view, s.readOnly = box, view, options.ReadOnly
	return data, nil
}

// Unselect ends the view.
func (s *session) Unselect() error {
	s.view.Close()
	s.box, s.view = nil, nil
	return nil
}

// Create makes a mailbox.
func (s *session) Create(name string, _ *imap.CreateOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.mailboxes[name]; ok {
		return errNo(imap.ResponseCodeAlreadyExists, "Mailbox exists")
	}
	s.create(name)
	return nil
}

// Delete removes a mailbox, but not INBOX.
func (s *session) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.mailboxes[name]; !ok {
		return errNo(imap.ResponseCodeNonExistent, "No such mailbox")
	}
	if name == "INBOX" {
		return errNo(imap.ResponseCodeCannot, "INBOX stays")
	}
	delete(s.mailboxes, name)
	delete(s.subscribed, name)
	return nil
}

// Rename renames a mailbox, but not INBOX.
func (s *session) Rename(name, newName string, _ *imap.RenameOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	box, ok := s.mailboxes[name]
	if !ok {
		return errNo(imap.ResponseCodeNonExistent, "No such mailbox")
	}
	if _, ok := s.mailboxes[newName]; ok {
		return errNo(imap.ResponseCodeAlreadyExists, "Mailbox exists")
	}
	if name == "INBOX" {
		return errNo(imap.ResponseCodeCannot, "INBOX stays")
	}
	delete(s.mailboxes, name)
	s.mailboxes[newName] = box
	return nil
}

// Subscribe adds a name for LSUB.
func (s *session) Subscribe(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.mailboxes[name]; !ok {
		return errNo(imap.ResponseCodeNonExistent, "No such mailbox")
	}
	s.subscribed[name] = true
	return nil
}

// Unsubscribe removes a name for LSUB.
func (s *session) Unsubscribe(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subscribed, name)
	return nil
}

// List lists mailboxes by name.
func (s *session) List(w *imapserver.ListWriter, ref string, patterns []string, options *imap.ListOptions) error {
	if len(patterns) == 0 { // LIST "" "" asks for the delimiter
		return w.WriteList(&imap.ListData{Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}, Delim: delimiter})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.mailboxes)) {
		use, isSpecial := special[name]
		if options.SelectSubscribed && !s.subscribed[name] || options.SelectSpecialUse && !isSpecial ||
			!slices.ContainsFunc(patterns, func(p string) bool { return imapserver.MatchList(name, delimiter, ref, p) }) {
			continue
		}
		data := &imap.ListData{Mailbox: name, Delim: delimiter}
		if s.subscribed[name] && (options.SelectSubscribed || options.ReturnSubscribed) {
			data.Attrs = append(data.Attrs, imap.MailboxAttrSubscribed)
		}
		if isSpecial {
			data.Attrs = append(data.Attrs, use)
		}
		if options.ReturnStatus != nil {
			data.Status = s.mailboxes[name].status(name)
		}
		if err := w.WriteList(data); err != nil {
			return err
		}
	}
	return nil
}

// Status describes a mailbox; the library selects the items of the request.
func (s *session) Status(name string, _ *imap.StatusOptions) (*imap.StatusData, error) {
	box, err := s.mailbox(name)
	if err != nil {
		return nil, err
	}
	return box.status(name), nil
}

// Append adds a message, whose size the library has checked.
func (s *session) Append(name string, r imap.LiteralReader, options *imap.AppendOptions) (*imap.AppendData, error) {
	box, err := s.mailbox(name)
	if err != nil {
		return nil, errNo(imap.ResponseCodeTryCreate, "No such mailbox")
	}
	raw := make([]byte, r.Size())
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	date := options.Time
	if date.IsZero() {
		date = time.Now()
	}
	return &imap.AppendData{UIDValidity: box.uidValidity, UID: box.append(raw, date, options.Flags)}, nil
}

// Poll sends the changes of the mailbox.
func (s *session) Poll(w *imapserver.UpdateWriter, allowExpunge bool) error {
	if s.view == nil {
		return nil
	}
	return s.view.Poll(w, allowExpunge)
}

// Idle sends the changes of the mailbox as they happen.
func (s *session) Idle(w *imapserver.UpdateWriter, stop <-chan struct{}) error {
	if s.view == nil {
		<-stop
		return nil
	}
	return s.view.Idle(w, stop)
}

// Expunge removes messages with \Deleted; uids nil: all of them. After EXAMINE it
// removes nothing.
func (s *session) Expunge(_ *imapserver.ExpungeWriter, uids *imap.UIDSet) error {
	if !s.readOnly {
		s.box.remove(func(m *message) bool {
			return m.has(imap.FlagDeleted) && (uids == nil || uids.Contains(m.uid))
		})
	}
	return nil // Poll says which
}

// Search searches messages.
func (s *session) Search(kind imapserver.NumKind, criteria *imap.SearchCriteria, _ *imap.SearchOptions) (*imap.SearchData, error) {
	var data imap.SearchData
	var seqs imap.SeqSet
	var uids imap.UIDSet
	s.box.each(s.view, imap.SeqSet{{Start: 1}}, func(m *message, _, seen uint32) {
		if !s.box.matches(m, seen, criteria) {
			return
		}
		found := seen
		if kind == imapserver.NumKindUID {
			found = uint32(m.uid)
			uids.AddNum(m.uid)
		} else {
			seqs.AddNum(seen)
		}
		if data.Count == 0 {
			data.Min = found
		}
		data.Max = found
		data.Count++
	})
	data.All = seqs
	if kind == imapserver.NumKindUID {
		data.All = uids
	}
	return &data, nil
}

// Fetch sends parts of messages as they were when it began: a client that stops
// reading does not block the mailbox.
func (s *session) Fetch(w *imapserver.FetchWriter, set imap.NumSet, options *imap.FetchOptions) error {
	read := !s.readOnly && slices.ContainsFunc(options.BodySection, func(b *imap.FetchItemBodySection) bool { return !b.Peek })
	type numbered struct {
		message
		seen uint32
	}
	var found []numbered
	s.box.each(s.view, set, func(m *message, num, seen uint32) {
		if read && !m.has(imap.FlagSeen) {
			m.store(imap.StoreFlagsAdd, []imap.Flag{imap.FlagSeen})
			s.box.tracker.QueueMessageFlags(num, m.uid, m.flags, nil)
		}
		found = append(found, numbered{*m, seen})
	})
	for _, m := range found {
		if err := m.write(w.CreateMessage(m.seen), options); err != nil {
			return err
		}
	}
	return nil
}

// write writes a FETCH response. UID comes first, because clients match the other
// items by it.
func (m *message) write(w *imapserver.FetchResponseWriter, options *imap.FetchOptions) (err error) {
	// After an error, too: until then nothing else can be written, not even BYE.
	defer func() { err = errors.Join(err, w.Close()) }()
	if options.UID {
		w.WriteUID(m.uid)
	}
	if options.Flags {
		w.WriteFlags(m.flags)
	}
	if options.InternalDate {
		w.WriteInternalDate(m.date)
	}
	if options.RFC822Size {
		w.WriteRFC822Size(int64(len(m.raw)))
	}
	if options.Envelope {
		// What cannot be parsed has an empty envelope.
		header, _ := textproto.ReadHeader(bufio.NewReader(bytes.NewReader(m.raw)))
		w.WriteEnvelope(imapserver.ExtractEnvelope(header))
	}
	if options.BodyStructure != nil {
		w.WriteBodyStructure(imapserver.ExtractBodyStructure(bytes.NewReader(m.raw)))
	}
	for _, item := range options.BodySection {
		section := m.section(item)
		literal := w.WriteBodySection(item, int64(len(section)))
		if _, err := literal.Write(section); err != nil {
			return err
		}
		if err := literal.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Store changes flags.
func (s *session) Store(w *imapserver.FetchWriter, set imap.NumSet, flags *imap.StoreFlags, _ *imap.StoreOptions) error {
	if s.readOnly {
		return errNo("READ-ONLY", "Mailbox is selected read-only")
	}
	s.box.each(s.view, set, func(m *message, num, _ uint32) {
		m.store(flags.Op, flags.Flags)
		s.box.tracker.QueueMessageFlags(num, m.uid, m.flags, s.view)
	})
	if flags.Silent {
		return nil
	}
	_, byUID := set.(imap.UIDSet)
	return s.Fetch(w, set, &imap.FetchOptions{UID: byUID, Flags: true})
}

// Copy copies messages.
func (s *session) Copy(set imap.NumSet, name string) (*imap.CopyData, error) {
	dest, err := s.mailbox(name)
	if err != nil {
		return nil, errNo(imap.ResponseCodeTryCreate, "No such mailbox")
	}
	var found []message
	s.box.each(s.view, set, func(m *message, _, _ uint32) { found = append(found, *m) })
	if len(found) == 0 {
		return nil, nil
	}
	data := &imap.CopyData{UIDValidity: dest.uidValidity}
	var source, copied imap.UIDSet
	for _, m := range found {
		source.AddNum(m.uid)
		copied.AddNum(dest.append(m.raw, m.date, m.flags))
	}
	data.SourceUIDs, data.DestUIDs = source, copied
	return data, nil
}

// Move copies messages and removes them.
func (s *session) Move(w *imapserver.MoveWriter, set imap.NumSet, name string) error {
	if s.readOnly {
		return errNo("READ-ONLY", "Mailbox is selected read-only")
	}
	data, err := s.Copy(set, name)
	if err != nil || data == nil {
		return err
	}
	if err := w.WriteCopyData(data); err != nil {
		return err
	}
	moved := data.SourceUIDs
	s.box.remove(func(m *message) bool { return moved.Contains(m.uid) })
	return nil // Poll says which
}
