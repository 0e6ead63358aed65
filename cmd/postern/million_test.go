package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Criterion: 1,000,000 UIDLs of 1,000 accounts are imported within 60 s and 200 MiB of memory, from JSON and from maildirs, while Postern runs.
func TestProofAMillionUIDLsAreImported(t *testing.T) {
	wantProof(t)
	const accounts, messages = 1000, 1000
	dir := t.TempDir()
	users, export := manyUIDLs(t, dir, accounts, messages)
	state := fmt.Sprintf("state: {path: %q}\n", filepath.Join(dir, "state"))
	p := startPostern(t, behind{imap: `{address: "127.0.0.1:1", tls: none}`}, state)
	config := file(t, dir, "commands.yaml", fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: not/needed.pem, key: not/needed.key}]}
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}}}
%s`, state))
	for _, c := range []struct{ name, stdin, args, want string }{
		{"JSON", export, "", fmt.Sprintf("imported: %d\n", accounts)},
		{"maildirs", os.DevNull, "--maildir " + dir + "/{domain}/{local} --list " + users, fmt.Sprintf("unique ids: %d of %[1]d are carried over\n", accounts*messages)},
	} {
		began := time.Now()
		out, most := measured(t, c.stdin, append([]string{"uidl", "import", "--config", config}, strings.Fields(c.args)...)...)
		took := time.Since(began)
		t.Logf("%s: %.1f s, at most %d MiB, and %d MiB in the Postern that runs\n%s", c.name, took.Seconds(), most>>20, peak(t, p)>>20, out)
		if !strings.Contains(out, c.want) {
			t.Errorf("%s: it prints %s", c.name, out)
		}
		if took > time.Minute {
			t.Errorf("%s: it takes %v, want a minute at most", c.name, took)
		}
		if most > 200<<20 && !raced() {
			t.Errorf("%s: it takes %d MiB, want 200 at most", c.name, most>>20)
		}
		got := run(t, dir, nil, []string{"postern", "uidl", "export", "user0999@example.org", "--config", config})
		if !strings.Contains(got, fmt.Sprintf(`{"uid":%d,"uidl":"UID%[1]d-1300000000"}`, messages)) || strings.Count(got, `"uidl":`) != messages {
			t.Errorf("%s: the record of the last account is %.200s", c.name, got)
		}
		run(t, dir, nil, []string{"postern", "uidl", "forget", "--all", "--yes", "--config", config})
	}
}

// manyUIDLs writes maildirs, a list of their users, and an export with the same UIDLs.
func manyUIDLs(t *testing.T, dir string, accounts, messages int) (users, export string) {
	t.Helper()
	var list, lines strings.Builder
	for a := range accounts {
		maildir := filepath.Join(dir, fmt.Sprintf("example.org/user%04d", a))
		for _, folder := range []string{"cur", "new"} {
			if err := os.MkdirAll(filepath.Join(maildir, folder), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		var sizes, uids, all strings.Builder
		fmt.Fprintf(&sizes, "/3 %d 1300000000\n", messages+1)
		fmt.Fprintf(&uids, "3 V7 N%d G2d9f842dff530b6b6365000083ecc375\n", messages+1)
		for i := 1; i <= messages; i++ {
			name := fmt.Sprintf("13%08d.M%06dP1234Q%d.mail.example.org", i, i, a)
			file(t, maildir, "cur/"+name+":2,S", "")
			fmt.Fprintf(&sizes, "%s:2,S 2100 %d:1300000000:0\n", name, i)
			fmt.Fprintf(&uids, "%d W2100 :%s\n", i, name)
			fmt.Fprintf(&all, `,{"uid":%d,"uidl":"UID%[1]d-1300000000"}`, i)
		}
		file(t, maildir, "courierpop3dsizelist", sizes.String())
		file(t, maildir, "dovecot-uidlist", uids.String())
		fmt.Fprintf(&list, "user%04d@example.org\n", a)
		fmt.Fprintf(&lines, `{"account":"user%04d@example.org","record":{"uidvalidity":7,"eras":[{"from":1,"format":"dovecot"}],"messages":[%s]}}`+"\n", a, all.String()[1:])
	}
	return file(t, dir, "users", list.String()), file(t, dir, "export.json", lines.String())
}

// measured runs a command of postern and returns what it prints, and the most memory that
// it has had, in octets. The kernel's own figure for a child that has ended begins with the
// memory of this process.
func measured(t *testing.T, stdin string, args ...string) (out string, most int) {
	t.Helper()
	in, err := os.Open(stdin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	var printed syncBuffer
	cmd := exec.CommandContext(t.Context(), "postern", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &printed, &printed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("postern %v: %v\n%s", args, err, printed.String())
			}
			return printed.String(), most
		case <-time.After(10 * time.Millisecond):
			if octets, ok := peakOf(cmd.Process.Pid); ok {
				most = max(most, octets)
			}
		}
	}
}
