package oldserver_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
)

func carryList(t *testing.T, text string, messages []string) (*uidl.Record, oldserver.Report) {
	t.Helper()
	list, err := oldserver.ReadList(strings.NewReader(text), "list.csv")
	if err != nil {
		t.Fatal(err)
	}
	in := inbox(messages)
	headers := func(_ context.Context, indexes []int, begin func() io.Writer, end func(int)) error {
		for _, i := range indexes {
			header, _, _ := strings.Cut(messages[i], "\r\n\r\n")
			w := begin()
			for _, c := range header + "\r\n\r\n" { // octets come in any portions
				_, _ = io.WriteString(w, string(c))
			}
			end(i)
		}
		return nil
	}
	record, report, err := oldserver.CarryList(t.Context(), list, in, headers, uidl.Dovecot)
	if err != nil {
		t.Fatal(err)
	}
	return record, report
}

// Criterion: From a list, a UIDL is carried over to the message that has its Message-ID alone, and its size.
func TestUIDLsOfAListAreCarriedOver(t *testing.T) {
	folded := "message-id:\r\n <folded@example.org>\r\nSubject: x\r\n\r\nx\r\n"
	none := "Subject: none\r\n\r\nx\r\n"
	twice := "Message-ID: <a>\r\nMessage-ID: <b>\r\n\r\nx\r\n"
	messages := []string{mail(3), mail(2), folded, mail(1), mail(7), mail(7), none, twice, mail(9)}
	list := "uidl,size,message_id\n# a comment\n"
	for _, row := range []struct {
		id, message string
		messageID   string
	}{
		{"one", mail(1), "<1@example.org>"},
		{"two", mail(2), "2@example.org"},
		{`t"h,ree`, mail(3), " <3@example.org> "},
		{"folded", folded, "<folded@example.org>"},
		{"removed", mail(4), "<4@example.org>"},
		{"unknown", none, ""},
		{"copies", mail(7), "<7@example.org>"},
		{"other", mail(9) + "longer", "<9@example.org>"},
		{"two-fields", twice, "<a>"},
		{"caf\xe9", mail(5), "<5@example.org>"},
	} {
		list += fmt.Sprintf("%q,%d,%s\n", row.id, len(row.message), row.messageID)
	}
	list = strings.ReplaceAll(strings.ReplaceAll(list, `"caf\xe9"`, "caf\xe9"), `t\"h`, `t""h`)
	record, report := carryList(t, list, messages)
	got := names(record)
	for uid, id := range got {
		if e := record.Current().Find(uid); e.Header == 0 {
			t.Errorf("%s has no fingerprint", id)
		}
	}
	want := map[uint32]string{10: `t"h,ree`, 20: "two", 30: "folded", 40: "one"}
	left := map[oldserver.Reason]int{oldserver.NoneHasID: 3, oldserver.NoMessageID: 1, oldserver.SeveralHaveID: 1, oldserver.SizeDiffers: 1}
	if !maps.Equal(got, want) || !maps.Equal(report.Left, left) || report.Found() != 4 || report.Old != 10 {
		t.Errorf("%v, %+v", got, report)
	}
}

func TestSizesOfAListMayDifferByTheSame(t *testing.T) {
	var messages []string
	list := ""
	for i := range 20 {
		messages = append(messages, mail(i))
		size := len(mail(i)) - 30 // without what the new server has added
		if i == 7 {
			size++ // another message with this Message-ID
		}
		list += fmt.Sprintf("id%d,%d,%d@example.org\n", i, size, i)
	}
	_, report := carryList(t, list, messages)
	if report.ByHeader != 19 || report.Left[oldserver.SizeDiffers] != 1 || report.Offset != 30 {
		t.Errorf("%+v", report)
	}
}

func TestFaultyListsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "list.csv: there is no message in it",
		"# nothing\n":                          "list.csv: there is no message in it",
		"uidl,size,message-id\n":               "list.csv: there is no message in it",
		"a,1\nb,2,\n":                          "list.csv: without Message-IDs, its third column, nothing proves",
		"a,1,<x>\nb\n":                         "list.csv:2: 1 columns, want three: unique id, size, Message-ID",
		"a,1,<x>,more\n":                       "list.csv:1: 4 columns",
		"a,1,<x>\n,2,<y>\n":                    "list.csv:2: there is no unique id",
		"a,x,<x>\n":                            `list.csv:1: "x" is not a size in octets`,
		"a,0,<x>\n":                            `list.csv:1: "0" is not a size`,
		"a,-1,<x>\n":                           "list.csv:1: ",
		"\"a\n":                                "list.csv:1: ",
		strings.Repeat("x", 5000) + ",1,<x>\n": "list.csv:1: column 1 has more than 4096 octets",
	} {
		if _, err := oldserver.ReadList(strings.NewReader(text), "list.csv"); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.50q: %v, want %s", text, err, want)
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add("uidl,size,message_id\na,1,<x>\n\"b\",2,y\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := oldserver.ReadList(strings.NewReader(text), "list.csv")
		if err == nil && len(list) == 0 {
			t.Error("an empty list is no error")
		}
		for i, l := range list {
			if l.Number != i+1 || l.UIDL == "" || l.Size < 1 {
				t.Errorf("%+v", l)
			}
		}
	})
}
