package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Criterion: fetchmail leaves mail on the server and fetches none twice, and
// flushes and deletes what it has fetched.
func TestFetchmailKeepsAndFlushes(t *testing.T) {
	s := open(t, "fetchmail")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two")
	const none = 1 // exit status: no mail
	command := fetchmail(t, dir, s.pop3, s.ca, u, "keep")
	fetchmail := func(status int, args ...string) {
		t.Helper()
		run(t, dir, nil, slices.Concat(command, []string{"-v"}, args), status)
	}
	got := func() []string { return sorted(subjects(files(t, dir+"/new/*"))) }
	fetchmail(0)
	wantSubjects(t, "first", got(), "one", "two")
	fetchmail(none)
	s.deliver(t, u, "three")
	fetchmail(0)
	wantSubjects(t, "third", got(), "one", "three", "two")
	wantSubjects(t, "kept", s.stored(t, u), "one", "two", "three")
	s.deliver(t, u, "four")
	fetchmail(0, "--flush")
	wantSubjects(t, "flushed", s.stored(t, u), "four")
	fetchmail(0, "--all", "--nokeep")
	wantSubjects(t, "in all", got(), "four", "four", "one", "three", "two")
	wantSubjects(t, "left", s.stored(t, u))
}

// Criterion: mpop leaves mail on the server, fetches none twice, and deletes.
func TestMpopFetchesNothingTwice(t *testing.T) {
	s := open(t, "mpop")
	for _, auth := range []string{"user", "plain"} {
		u, dir := s.user(t), t.TempDir()
		s.deliver(t, u, "one", "two")
		got := func() []string { return sorted(subjects(files(t, dir+"/new/*"))) }
		mpop := mpop(t, dir, s.pop3, s.ca, u, auth)
		run(t, dir, nil, append(mpop, "--keep=on"))
		wantSubjects(t, "first", got(), "one", "two")
		run(t, dir, nil, append(mpop, "--keep=on"))
		s.deliver(t, u, "three")
		run(t, dir, nil, append(mpop, "--keep=on"))
		wantSubjects(t, "third", got(), "one", "three", "two")
		wantSubjects(t, "kept", s.stored(t, u), "one", "two", "three")
		run(t, dir, nil, append(mpop, "--keep=off"))
		wantSubjects(t, "in all", got(), "one", "three", "two")
		wantSubjects(t, "left", s.stored(t, u))
	}
}

// Criterion: getmail leaves mail on the server, fetches none twice, and deletes.
func TestGetmailFetchesNothingTwice(t *testing.T) {
	s := open(t, "getmail")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two")
	got := func() []string { return sorted(subjects(files(t, dir+"/new/*"))) }
	getmail := getmail(t, dir, s.pop3, s.ca, u)
	run(t, dir, nil, getmail)
	wantSubjects(t, "first", got(), "one", "two")
	run(t, dir, nil, getmail)
	s.deliver(t, u, "three")
	run(t, dir, nil, getmail)
	wantSubjects(t, "third", got(), "one", "three", "two")
	wantSubjects(t, "kept", s.stored(t, u), "one", "two", "three")
	run(t, dir, nil, append(getmail, "--delete"))
	wantSubjects(t, "in all", got(), "one", "three", "two")
	wantSubjects(t, "left", s.stored(t, u))
}

// Criterion: curl lists, fetches and deletes by POP3S and fetches by IMAPS.
func TestCurlFetchesByPOP3AndIMAP(t *testing.T) {
	s := open(t, "curl")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two")
	curl := func(args ...string) string {
		t.Helper()
		return run(t, dir, nil, append([]string{"curl", "--silent", "--show-error", "--cacert", s.ca, "--user", u.name + ":" + u.password}, args...))
	}
	pop3s, imaps := "pop3s://localhost:"+port(t, s.pop3), "imaps://localhost:"+port(t, s.imap)
	if got := strings.Count(curl(pop3s), "\r\n"); got != 2 {
		t.Errorf("LIST has %d lines, want 2", got)
	}
	if got := strings.Count(curl(pop3s, "--request", "UIDL"), "\r\n"); got != 2 {
		t.Errorf("UIDL has %d lines, want 2", got)
	}
	if got, want := curl(pop3s+"/2"), mail(u, "two"); got != want {
		t.Errorf("by POP3: %q, want %q", got, want)
	}
	if got, want := curl(imaps+"/INBOX;MAILINDEX=2"), mail(u, "two"); got != want {
		t.Errorf("by IMAP: %q, want %q", got, want)
	}
	curl(pop3s+"/1", "--request", "DELE", "--list-only")
	wantSubjects(t, "left", s.stored(t, u), "two")
}

// Criterion: mbsync synchronises both ways, and has nothing to do the next time.
func TestMbsyncSynchronisesBothWays(t *testing.T) {
	s := open(t, "mbsync")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two", "three")
	near := filepath.Join(dir, "near")
	maildir(t, near)
	rc := file(t, dir, "mbsyncrc", `
IMAPAccount postern
Host localhost
Port `+port(t, s.imap)+`
User `+u.name+`
Pass "`+u.password+`"
SSLType IMAPS
CertificateFile `+s.ca+`

IMAPStore far
Account postern

MaildirStore near
Path `+dir+`/
Inbox `+near+`

Channel inbox
Far :far:
Near :near:
Patterns INBOX
Create None
Expunge Both
SyncState *
`)
	mbsync := func() string { t.Helper(); return run(t, dir, nil, []string{"mbsync", "-V", "-c", rc, "-a"}) }
	got := func() []string {
		return sorted(subjects(append(files(t, near+"/new/*"), files(t, near+"/cur/*")...)))
	}
	mbsync()
	wantSubjects(t, "first", got(), "one", "three", "two")
	// One more on this side, one less on either.
	file(t, near, "cur/1.written.here:2,S", strings.ReplaceAll(mail(u, "four"), "\r\n", "\n"))
	flagged := glob(t, near+"/*/*")
	for _, path := range flagged {
		if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, []byte("Subject: one\n")) {
			moveTo(t, path, filepath.Join(near, "cur", strings.TrimSuffix(filepath.Base(path), ":2,")+":2,T"))
		}
	}
	s.backend.Doveadm(t, "expunge", "-u", u.name, "mailbox", "INBOX", "subject", "two")
	mbsync()
	wantSubjects(t, "here", got(), "four", "three")
	wantSubjects(t, "there", s.stored(t, u), "three", "four")
	mbsync()
	wantSubjects(t, "here, once more", got(), "four", "three")
	wantSubjects(t, "there, once more", s.stored(t, u), "three", "four")
}

// mutt runs mutt with a configuration, in a terminal, with keys to press.
func mutt(t testing.TB, dir, config, mailbox, keys string) {
	t.Helper()
	rc := file(t, dir, "muttrc", config+`
set header_cache="" message_cachedir="" certificate_file=""
set move=no confirmappend=no confirmcreate=no delete=yes quit=yes wait_key=no mark_old=no
set timeout=1 sleep_time=0 read_inc=0 save_empty=no sort=mailbox-order mbox_type=Maildir
push "`+keys+`"
`)
	keyboard, hands, err := os.Pipe() // an end of its input is one of mutt, too
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = keyboard.Close(), hands.Close() }()
	run(t, dir, keyboard, []string{"script", "--quiet", "--return", "--command",
		"stty cols 200 rows 50; exec mutt -n -F " + rc + " -f " + mailbox, dir + "/typescript"})
}

// readAndDelete are the keys that copy the messages 1 and 2 into dir/got, show
// 2 and delete it.
func readAndDelete(dir string) string {
	return "1<enter><copy-message>" + dir + "/got<enter>2<enter><copy-message>" + dir + "/got<enter>" +
		"2<enter><display-message><exit><delete-message><quit>"
}

// Criterion: mutt opens, reads, deletes and quits by POP3.
func TestMuttReadsAndDeletesByPOP3(t *testing.T) {
	s := open(t, "mutt", "script")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two", "three")
	mutt(t, dir, `
set ssl_ca_certificates_file="`+s.ca+`"
set pop_pass="`+u.password+`" pop_delete=yes
`, "pops://"+u.name+"@localhost:"+port(t, s.pop3)+"/", readAndDelete(dir))
	wantSubjects(t, "copied", sorted(subjects(append(files(t, dir+"/got/new/*"), files(t, dir+"/got/cur/*")...))), "one", "two")
	wantSubjects(t, "left", s.stored(t, u), "one", "three")
}

// Criterion: mutt opens, reads, deletes and quits by IMAP.
func TestMuttReadsAndDeletesByIMAP(t *testing.T) {
	s := open(t, "mutt", "script")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two", "three")
	mutt(t, dir, `
set ssl_ca_certificates_file="`+s.ca+`"
set imap_pass="`+u.password+`"
`, "imaps://"+u.name+"@localhost:"+port(t, s.imap)+"/INBOX", readAndDelete(dir))
	wantSubjects(t, "copied", sorted(subjects(append(files(t, dir+"/got/new/*"), files(t, dir+"/got/cur/*")...))), "one", "two")
	wantSubjects(t, "left", s.stored(t, u), "one", "three")
}

// python runs a script of testdata/clients.
func (s *stage) python(t testing.TB, script string, u user, more ...string) {
	t.Helper()
	path, err := filepath.Abs("testdata/clients/" + script)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"env", "CA=" + s.ca, "IMAP=" + port(t, s.imap), "POP3=" + port(t, s.pop3),
		"NAME=" + u.name, "PASSWORD=" + u.password, "ADDRESS=" + u.address}
	run(t, t.TempDir(), nil, append(append(args, more...), "/usr/bin/python3", path))
}

// Criterion: Python's poplib lists, retrieves, deletes, and hangs up.
func TestPoplibListsRetrievesAndDeletes(t *testing.T) {
	s := open(t, "/usr/bin/python3")
	u := s.user(t)
	s.deliver(t, u, "one", "two", "three")
	s.python(t, "pop3.py", u)
	wantSubjects(t, "left", s.stored(t, u), "two", "three")
}

// Criterion: Python's imaplib appends, searches, fetches, copies and deletes.
func TestImaplibAppendsFetchesAndDeletes(t *testing.T) {
	s := open(t, "/usr/bin/python3")
	u := s.user(t)
	s.deliver(t, u, "one", "two", "three")
	s.python(t, "imap.py", u)
	if got := len(s.backend.Stored(t, u.name)); got != 3 {
		t.Errorf("%d messages are left, want 3", got)
	}
}
