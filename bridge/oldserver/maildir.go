package oldserver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"postern/bridge/uidl"
)

// IDs says where the UIDLs are that the old server of a maildir has shown.
type IDs string

// Courier: in courierpop3dsizelist. Saved: in dovecot-uidlist, where Dovecot writes them by
// pop3_save_uidl, and programs that migrate. GUID and FileName: Dovecot's %g and %f; the
// latter is also what qmail-pop3d shows.
const (
	Courier  IDs = "courier"
	Saved    IDs = "saved"
	GUID     IDs = "guid"
	FileName IDs = "filename"
)

// AllIDs returns all values of IDs.
func AllIDs() []IDs { return []IDs{Courier, Saved, GUID, FileName} }

// Reasons of CarryMaildir.
const (
	NoFile    Reason = "no file of the maildir is in courierpop3dsizelist: the mail was copied with other file names, or all of it was removed"
	SameNames Reason = "several files of the maildir have the name of its file"
)

// maxScans bounds how often a maildir is read until nothing changes meanwhile.
const maxScans = 10

// CarryMaildir makes the record of an INBOX that is the maildir of the old server: each
// file has the UIDL that the old server has shown of it, and the UID that the new one has
// given it. The new server is Dovecot, or Courier's imapd. An ids of "" takes Courier or
// Saved, whichever is there; both are an error. If there are no UIDLs of that kind, the
// Record is nil.
//
// Symbolic links and special files in the maildir are an error, and the maildir itself may
// not be one. Errors have file and line.
func CarryMaildir(path string, ids IDs, f uidl.Format) (*uidl.Record, Report, error) {
	m, err := openMaildir(path)
	if err != nil {
		return nil, Report{}, err
	}
	defer func() { _ = m.root.Close() }()
	c := carriedFiles{maildir: m, ids: ids}
	record, report, err := c.carry(f)
	if err != nil {
		return nil, Report{}, err
	}
	return record, report, nil
}

// A maildir is one that an operator has named.
type maildir struct {
	path string
	root *os.Root
}

func openMaildir(path string) (*maildir, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is a %s, not a folder: name the folder itself", path, kindOf(info))
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	if opened, err := root.Stat("."); err != nil || !os.SameFile(info, opened) { // its owner has put a link there
		_ = root.Close()
		return nil, errors.Join(fmt.Errorf("%s was replaced meanwhile: try again", path), err)
	}
	return &maildir{path, root}, nil
}

func kindOf(info fs.FileInfo) string {
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		return "symbolic link"
	case mode.IsDir():
		return "folder"
	case mode.IsRegular():
		return "file"
	}
	return "special file"
}

// open opens a regular file, or returns nil if there is none with this name.
func (m *maildir) open(name string) (*os.File, error) {
	before, err := m.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s/%s is a %s, not a file", m.path, name, kindOf(before))
	}
	f, err := m.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO in its place would block
	if err != nil {
		return nil, err
	}
	if after, err := f.Stat(); err != nil || !os.SameFile(before, after) {
		_ = f.Close()
		return nil, errors.Join(fmt.Errorf("%s/%s was replaced meanwhile: try again", m.path, name), err)
	}
	return f, nil
}

// A mailFile is a message of a maildir.
type mailFile struct {
	path string // of one of the files
	n    int    // files whose names differ in their flags alone
}

// files returns the messages by the base of their file name, which has no flags. A server
// may rename files meanwhile, so two reads in a row must agree.
func (m *maildir) files() (map[string]mailFile, error) {
	var last map[string]mailFile
	for range maxScans {
		names := make(map[string]mailFile)
		for _, folder := range []string{"new", "cur"} { // in the order in which a message goes through them
			if err := m.scan(folder, names); err != nil {
				return nil, err
			}
		}
		if last != nil && maps.Equal(last, names) {
			return names, nil
		}
		last = names
	}
	return nil, fmt.Errorf("%s changes all the time: try again", m.path)
}

func (m *maildir) scan(folder string, names map[string]mailFile) error {
	info, err := m.root.Lstat(folder)
	if err != nil {
		return fmt.Errorf("%s is no maildir: %w", m.path, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s/%s is a %s, not a folder", m.path, folder, kindOf(info))
	}
	dir, err := m.root.Open(folder)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				name := base(e.Name())
				names[name] = mailFile{folder + "/" + e.Name(), names[name].n + 1}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(names) > maxMessages {
			return fmt.Errorf("%s has more than %d messages", m.path, maxMessages)
		}
	}
}

// base returns the part of a file name that stays the same when flags change.
func base(name string) string {
	name, _, _ = strings.Cut(name, ":")
	return name
}

// A carriedFiles is a maildir whose UIDLs are carried over.
type carriedFiles struct {
	*maildir
	ids   IDs
	sizes []sizedFile // of courierpop3dsizelist
	files map[string]mailFile
	uids  uidFile
}

func (c *carriedFiles) carry(f uidl.Format) (*uidl.Record, Report, error) {
	// The list of the old server is read first and the one of the new server last: what
	// comes meanwhile has a UID, and is not missing.
	var err error
	if c.sizes, err = c.readSizeList(); err != nil {
		return nil, Report{}, err
	}
	if c.files, err = c.maildir.files(); err != nil {
		return nil, Report{}, err
	}
	if c.ids == Courier && c.sizes == nil {
		return nil, Report{New: len(c.files)}, nil
	}
	if c.uids, err = c.readUIDs(); err != nil {
		return nil, Report{}, err
	}
	if err := c.choose(); err != nil {
		return nil, Report{}, err
	}
	if c.ids == "" || c.ids == Saved && !c.uids.saved() {
		return nil, Report{New: len(c.files)}, nil
	}
	in := Inbox{UIDValidity: c.uids.validity}
	at := make(map[string]int) // indexes in INBOX by file
	for _, r := range c.uids.files {
		in.UIDNext = r.uid + 1 // the least that it is: a lower UIDNEXT would say that the UIDs have changed
		if c.files[r.name].n > 0 {
			at[r.name] = len(in.UIDs)
			in.UIDs = append(in.UIDs, r.uid)
		}
	}
	messages, names := c.shown()
	matching, err := c.match(messages, names, at)
	if err != nil {
		return nil, Report{}, err
	}
	record, report, err := NewRecord(messages, matching, in, f)
	report.IDs = c.ids
	return record, report, err
}

// choose sets ids, if it is not set, to what is there.
func (c *carriedFiles) choose() error {
	if c.ids != "" {
		return nil
	}
	switch saved := c.uids.saved(); {
	case saved && c.sizes != nil:
		return fmt.Errorf("%s has unique ids of Courier (%s) and of Dovecot (%s): say with --ids which of them clients were shown last, courier or saved", c.path, sizeList, c.uids.source)
	case saved:
		c.ids = Saved
	case c.sizes != nil:
		c.ids = Courier
	}
	return nil
}

// shown returns the messages that the old server has shown, and the names of their files.
func (c *carriedFiles) shown() (messages []Message, names []string) {
	add := func(name, id string, size int64) {
		messages = append(messages, Message{Number: len(messages) + 1, UIDL: id, Size: size})
		names = append(names, name)
	}
	if c.ids == Courier {
		for _, s := range c.sizes {
			add(s.name, s.id, s.size)
		}
		return messages, names
	}
	listed := make(map[string]bool)
	for _, r := range c.uids.files {
		listed[r.name] = true
		switch {
		case c.files[r.name].n == 0: // removed: the ids are those of files, which do not come again
		case c.ids == GUID && r.guid != "":
			add(r.name, r.guid, 0)
		case c.ids == Saved && r.hasPOP3 && r.pop3 != "":
			add(r.name, r.pop3, 0)
		case c.ids != Saved || r.hasPOP3: // an empty one saved stands for the file name
			add(r.name, r.name, 0)
		}
	}
	if c.ids == Saved {
		return messages, names
	}
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		if !listed[name] {
			add(name, name, 0)
		}
	}
	return messages, names
}

// match finds the messages whose files have the names by the index of their file in INBOX.
func (c *carriedFiles) match(messages []Message, names []string, at map[string]int) (Matching, error) {
	result := Matching{Left: make(map[int]Reason)}
	shared := sharedUIDLs(messages)
	var removed, waiting []int
	content := int64(MaxContent)
	for i, name := range names {
		j, listed := at[name]
		switch {
		case c.files[name].n == 0:
			removed = append(removed, i)
		case c.files[name].n > 1:
			result.Left[i] = SameNames
		case !listed:
			waiting = append(waiting, i)
		default:
			p := Pair{Old: i, New: j, Proof: ByFile}
			if shared[i] {
				var err error
				if p.Sum, err = c.sum(name, &content); err != nil {
					return result, err
				}
			}
			result.Pairs = append(result.Pairs, p)
		}
	}
	if len(waiting) > 0 {
		return result, fmt.Errorf("%s: %d of its files, such as %q, have no UID in %s yet: let the new server list INBOX "+
			"(with Dovecot: doveadm mailbox status -u USER messages INBOX), and run the same command again", c.path, len(waiting), names[waiting[0]], c.uids.source)
	}
	why := gone
	if len(result.Pairs) == 0 && len(c.files) > 0 {
		why = NoFile
	}
	for _, i := range removed {
		result.Left[i] = why
	}
	slices.SortFunc(result.Pairs, func(a, b Pair) int { return a.New - b.New })
	return result, nil
}

// sum returns the hash of a message, or the zero Sum if it has more octets than left.
func (c *carriedFiles) sum(name string, left *int64) (sum Sum, err error) {
	path := c.files[name].path
	f, err := c.open(path)
	if err != nil {
		return sum, err
	}
	if f == nil {
		return sum, fmt.Errorf("%s/%s was renamed meanwhile: try again", c.path, path)
	}
	defer func() { _ = f.Close() }()
	var hash uidl.ContentHash
	n, err := io.Copy(&hash, io.LimitReader(f, *left+1))
	if *left -= n; err != nil || *left < 0 {
		*left = max(*left, 0)
		return sum, err
	}
	return hash.Sum(), nil
}
