package oldserver_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
)

// maildir makes a maildir with files, by their paths in it.
func maildir(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{"cur", "new", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// courierMaildir is what Courier's pop3d and Dovecot's imap have written into one maildir.
func courierMaildir() map[string]string {
	return map[string]string{
		"cur/1.M1.host:2,S": mail(1), "cur/1.M2.host:2,": mail(2), "cur/1.M3 a+b.host:2,RS": mail(3), "new/1.M4.host": mail(4), "cur/1.M5.host:2,": mail(5),
		"courierpop3dsizelist": "/3 7 1300000000\n" +
			"1.M1.host:2, 21 1:1300000000:0\n" +
			"1.M2.host:2,S 21 2:0:0\n" +
			"1.M3 a+b.host 21 0:0:1\n" +
			"1.M5.host:2, 21 6:1300000000:0\n" +
			"1.M6.host:2, 21 5:1300000000:0\n",
		"dovecot-uidlist": "3 V7 N3 G2d9f842dff530b6b6365000083ecc375\n" +
			"1 W21 :1.M1.host\n" +
			"2 :1.M2.host:2,S\n" +
			"5 S21 W30 :1.M3 a+b.host\n" +
			"6 :1.M4.host\n" +
			"8 :1.M5.host\n" +
			"9 :1.M9.host\n",
	}
}

// names returns the unique ids of the messages of a record by UID, except those that the
// format computes.
func names(r *uidl.Record) map[uint32]string {
	all := make(map[uint32]string)
	for _, e := range r.Current().Entries {
		all[e.UID] = e.UIDL
	}
	return all
}

// Criterion: UIDLs are carried over by file name from Courier's courierpop3dsizelist, from those that Dovecot has saved, and from file names, without a connection.
func TestUIDLsAreCarriedOverByFile(t *testing.T) {
	saved := map[string]string{
		"cur/1.M1.host,S=21:2,S": mail(1), "cur/1.M2.host:2,": mail(2), "cur/1.M3.host:2,": mail(3),
		"dovecot-uidlist": "3 V7 N6\n1 W21 P :1.M1.host,S=21\n3 PUID9-1 Gguid :1.M2.host\n4 :1.M3.host\n5 Pgone :1.M4.host\n",
	}
	former := map[string]string{"cur/a:2,": mail(1), "cur/b:2,": mail(2), "courierimapuiddb": "1 9 4\n1 a\n3 b\n"}
	for _, c := range []struct {
		name  string
		files map[string]string
		ids   oldserver.IDs
		from  oldserver.IDs
		want  map[uint32]string
		gone  int
	}{
		{"Courier", courierMaildir(), "", oldserver.Courier, map[uint32]string{1: "UID1-1300000000", 2: "UID2", 5: "1.M3+20a+2Bb.host", 8: "UID6-1300000000"}, 1},
		{"saved", saved, "", oldserver.Saved, map[uint32]string{1: "1.M1.host,S=21", 3: "UID9-1"}, 0},
		{"GUID", saved, oldserver.GUID, oldserver.GUID, map[uint32]string{1: "1.M1.host,S=21", 3: "guid", 4: "1.M3.host"}, 0},
		{"file names", saved, oldserver.FileName, oldserver.FileName, map[uint32]string{1: "1.M1.host,S=21", 3: "1.M2.host", 4: "1.M3.host"}, 0},
		{"file names and courierimapuiddb", former, oldserver.FileName, oldserver.FileName, map[uint32]string{1: "a", 3: "b"}, 0},
	} {
		record, report, err := oldserver.CarryMaildir(maildir(t, c.files), c.ids, uidl.Dovecot)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := names(record); !maps.Equal(got, c.want) || report.ByFile != len(c.want) || report.Old != len(c.want) || report.Gone != c.gone || report.Left != nil || report.IDs != c.from {
			t.Errorf("%s: %v and %+v, want %v", c.name, got, report, c.want)
		}
	}
}

// Criterion: A UIDL of a file that was removed is given to no other message.
func TestUIDLsOfRemovedFilesAreKept(t *testing.T) {
	record, _, err := oldserver.CarryMaildir(maildir(t, courierMaildir()), "", mustParse(t, "UID%u-1300000000"))
	if err != nil {
		t.Fatal(err)
	}
	// The format would compute that of the removed file 5 for a new message, and that of message 8 for 6.
	if got := names(record)[6]; got == "" || got == "UID6-1300000000" {
		t.Errorf("message 6 has %q", got)
	}
	record.Separate([]uint32{10})
	taken := map[string]int{}
	for _, g := range record.Generations {
		for _, e := range g.Entries {
			taken[e.UIDL]++
		}
	}
	if taken["UID5-1300000000"] != 1 {
		t.Errorf("%v", taken)
	}
}

func mustParse(t *testing.T, s string) uidl.Format {
	t.Helper()
	f, err := uidl.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Faults of the files: not there, empty, half, of another version, twice the same, not numbers.
func TestFaultyFilesCarryNothingOver(t *testing.T) {
	list, uids := "courierpop3dsizelist", "dovecot-uidlist"
	for _, c := range []struct {
		name, file, text string
		ids              oldserver.IDs
		want             string
	}{
		{"not there", uids, "", "", "neither dovecot-uidlist nor courierimapuiddb: let the new server list INBOX first"},
		{"empty", list, "\x00", "", "courierpop3dsizelist:1: the file is empty"},
		{"empty", uids, "\x00", "", "dovecot-uidlist:1: the file is empty"},
		{"half", list, "/3 7 13\n1.M1.host:2, 21 1:13:0\n1.M2.host:2, 2", "", "courierpop3dsizelist:3: the last line has no end"},
		{"half a header", list, "/3", "", "courierpop3dsizelist:1: the last line has no end"},
		{"half", uids, "3 V7 N3\n1 :1.M1", "", "dovecot-uidlist:2: the last line has no end"},
		{"another version", list, "1.M1.host 21\n", "", `:1: "1.M1.host 21" does not begin a list of version 2 or 3: carry the unique ids over with --old`},
		{"another version", list, "/4 1 2\n", "", ":1: "},
		{"another version", uids, "2 V7 N3\n", "", ":1: \"2 V7 N3\" does not begin a list of version 1 or 3"},
		{"binary", uids, "\x00\x01\n", "", ":1: "},
		{"twice the same file", list, "/2 7 13\na 1 1:13\nb 1 2:13\na:2,S 1 3:13\n", "", `:4: file "a" is in line 2, too`},
		{"twice the same file", uids, "3 V7 N9\n1 :a\n2 :b\n3 :a\n", "", `:4: file "a" is in line 2, too`},
		{"out of order", uids, "3 V7 N9\n2 :a\n2 :b\n", "", ":3: UID 2 is not greater"},
		{"no numbers", list, "/3 7 13\na b c:d:e\n", "", `:2: "b" is not a size`},
		{"no numbers", list, "/3 7 13\na 1 1:x:0\n", "", ":2: "},
		{"too few numbers", list, "/3 7 13\na 1 1:13\n", "", ":2: \"1:13\" has 2 numbers, want 3"},
		{"too few words", list, "/3 7 13\na\n", "", ":2: there are not a file name, a size and a number"},
		{"no UID", uids, "3 V7 N9\nx :a\n", "", `:2: "x" is not a UID`},
		{"no file name", uids, "3 V7 N9\n1 W21\n", "", ":2: there is no file name after a colon"},
		{"no file name", uids, "3 V7 N9\n1 :\n", "", `:2: "" is not a file name`},
		{"a path", uids, "3 V7 N9\n1 :../a\n", "", ` is not a file name`},
		{"no UIDVALIDITY", uids, "3 N9\n1 :a\n", "", "has no UIDVALIDITY"},
		{"no UIDVALIDITY", uids, "1 0 9\n1 a\n", "", "has no UIDVALIDITY"},
		{"above the next UID", uids, "1 7 3\n3 a\n", "", ":2: UID 3 is not below"},
		{"a long line", list, "/3 7 13\n" + strings.Repeat("x", 5000) + "\n", "", ":2: the line has more than 4096 octets"},
		{"two kinds", uids, "3 V7 N9\n1 PUID1-1300000000 :1.M1.host\n", "", "say with --ids which of them clients were shown last, courier or saved"},
		{"not listed yet", uids, "3 V7 N9\n1 :1.M1.host\n2 :1.M2.host\n5 :1.M3 a+b.host\n", "", `1 of its files, such as "1.M5.host", have no UID in dovecot-uidlist yet`},
		{"not listed yet", uids, "3 V7 N9\n1 :1.M1.host\n", oldserver.FileName, "4 of its files, such as "},
	} {
		files := courierMaildir()
		switch c.text {
		case "":
			delete(files, c.file)
		case "\x00":
			files[c.file] = ""
		default:
			files[c.file] = c.text
		}
		record, _, err := oldserver.CarryMaildir(maildir(t, files), c.ids, uidl.Dovecot)
		if err == nil || record != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v, want %s", c.file, c.name, err, c.want)
		}
	}
}

func TestMaildirsWithoutUIDLsHaveNoRecord(t *testing.T) {
	plain := map[string]string{"cur/a:2,": mail(1), "dovecot-uidlist": "3 V7 N9\n1 :a\n"}
	for _, ids := range []oldserver.IDs{"", oldserver.Courier, oldserver.Saved} {
		if record, report, err := oldserver.CarryMaildir(maildir(t, plain), ids, uidl.Dovecot); record != nil || err != nil || report.New != 1 {
			t.Errorf("%s: %v, %+v, %v", ids, record, report, err)
		}
	}
	// Courier has listed it when it had no mail.
	empty := map[string]string{"courierpop3dsizelist": "/3 1 13\n", "dovecot-uidlist": "3 V7 N1\n"}
	if record, report, err := oldserver.CarryMaildir(maildir(t, empty), "", uidl.Dovecot); record == nil || err != nil || report.Old != 0 {
		t.Errorf("%v, %+v, %v", record, report, err)
	}
}

func TestFilesThatAreNotTheSameAreLeft(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(files map[string]string)
		want   map[oldserver.Reason]int
	}{
		{"two files have one name", func(f map[string]string) { f["cur/1.M1.host:2,"] = mail(9) }, map[oldserver.Reason]int{oldserver.SameNames: 1}},
		{"other file names", func(f map[string]string) {
			f["courierpop3dsizelist"] = "/3 7 13\nx 21 1:13:0\ny 21 2:13:0\n"
		}, map[oldserver.Reason]int{oldserver.NoFile: 2}},
		{"an id that is none", func(f map[string]string) {
			f["dovecot-uidlist"] = "3 V7 N9\n1 Pcaf\xe9 :1.M1.host\n2 Pok :1.M2.host\n"
			delete(f, "courierpop3dsizelist")
		}, map[oldserver.Reason]int{oldserver.InvalidUIDL: 1}},
		{"one id of two messages", func(f map[string]string) {
			f["dovecot-uidlist"] = "3 V7 N9\n1 Psame :1.M1.host\n2 Psame :1.M2.host\n"
			delete(f, "courierpop3dsizelist")
		}, map[oldserver.Reason]int{oldserver.SharedUIDL: 2}},
		{"one id of exact copies", func(f map[string]string) {
			f["dovecot-uidlist"] = "3 V7 N9\n1 Psame :1.M1.host\n2 Psame :1.M2.host\n"
			f["cur/1.M2.host:2,"] = mail(1)
			delete(f, "courierpop3dsizelist")
		}, nil},
	} {
		files := courierMaildir()
		c.change(files)
		record, report, err := oldserver.CarryMaildir(maildir(t, files), "", uidl.Dovecot)
		if err != nil || !maps.Equal(report.Left, c.want) || report.Old-report.ByFile != len(report.Examples) {
			t.Errorf("%s: %+v, %v, %v", c.name, report, err, record)
		}
	}
}

// Criterion: root reads no symbolic link and no special file in a maildir, which belongs to its user.
func TestLinksAndSpecialFilesAreNotRead(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root:$6$hash\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(name string) func(string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			_ = os.RemoveAll(path)
			return os.Symlink(secret, path)
		}
	}
	for _, c := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"a link for the list", link("courierpop3dsizelist"), "courierpop3dsizelist is a symbolic link, not a file"},
		{"a link for the UIDs", link("dovecot-uidlist"), "dovecot-uidlist is a symbolic link, not a file"},
		{"a link for cur", link("cur"), "cur is a symbolic link, not a folder"},
		{"a FIFO", func(dir string) error {
			path := filepath.Join(dir, "courierpop3dsizelist")
			_ = os.Remove(path)
			return syscall.Mkfifo(path, 0o600)
		}, "courierpop3dsizelist is a special file, not a file"},
		{"a folder", func(dir string) error {
			path := filepath.Join(dir, "dovecot-uidlist")
			_ = os.Remove(path)
			return os.Mkdir(path, 0o700)
		}, "dovecot-uidlist is a folder, not a file"},
		{"no new", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "new")) }, "is no maildir: "},
	} {
		dir := maildir(t, courierMaildir())
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := oldserver.CarryMaildir(dir, "", uidl.Dovecot); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hash") {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	dir := maildir(t, courierMaildir())
	if err := os.Symlink(dir, secret+"-link"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{secret + "-link": "is a symbolic link, not a folder", secret: "is a file, not a folder", secret + "-none": "no such file"} {
		if _, _, err := oldserver.CarryMaildir(path, "", uidl.Dovecot); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}

// Whatever is in the files: what has a UIDL is a file, and no two files share one.
func FuzzMaildir(f *testing.F) {
	files := courierMaildir()
	f.Add(files["courierpop3dsizelist"], files["dovecot-uidlist"])
	f.Add("/2 1 1\na 1 1:1\nb 1 1:1\n", "1 7 9\n1 1.M1.host\n")
	f.Add("", "3 V7 N9\n1 P :1.M1.host\n2 Px W1 Gy :1.M2.host:2,S\n")
	f.Fuzz(func(t *testing.T, list, uids string) {
		files := courierMaildir()
		files["courierpop3dsizelist"], files["dovecot-uidlist"] = list, uids
		dir := maildir(t, files)
		for _, ids := range append(oldserver.AllIDs(), "") {
			record, report, err := oldserver.CarryMaildir(dir, ids, uidl.Dovecot)
			if err != nil || record == nil {
				continue
			}
			if report.Found() > 5 || report.Found() > report.Old {
				t.Errorf("%s: %+v", ids, report)
			}
			var all []string
			for _, id := range names(record) {
				all = append(all, id)
			}
			if slices.Sort(all); len(slices.Compact(all)) != len(names(record)) {
				t.Errorf("%s: %q", ids, all)
			}
		}
	})
}

func BenchmarkMaildir(b *testing.B) {
	files := map[string]string{}
	list, uids := "/3 1001 1300000000\n", "3 V7 N1001\n"
	for i := 1; i <= 1000; i++ {
		name := fmt.Sprintf("13000%05d.M%dP1234.host", i, i)
		files["cur/"+name+":2,S"] = ""
		list += fmt.Sprintf("%s:2,S 2100 %d:1300000000:0\n", name, i)
		uids += fmt.Sprintf("%d W2100 :%s\n", i, name)
	}
	files["courierpop3dsizelist"], files["dovecot-uidlist"] = list, uids
	dir := maildir(b, files)
	for b.Loop() {
		if _, report, err := oldserver.CarryMaildir(dir, "", uidl.Dovecot); err != nil || report.ByFile != 1000 {
			b.Fatal(err, report)
		}
	}
}
