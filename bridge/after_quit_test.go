package bridge

import (
	"slices"
	"strings"
	"testing"

	"postern/proxy"
)

// Criterion: after a session's own deletions, too, an unchanged mailbox costs one SELECT.
func TestPollsAfterOwnDeletionsCostOneSELECT(t *testing.T) {
	m := newModel("")
	m.deliver(1000)
	b, _, _, _ := m.bases(t)
	b.Estimates, b.KeepUnseen = true, true
	for name, step := range map[string]struct {
		before   func(command string)
		commands int
	}{
		"removed": {nil, 1},
		"one has lost its flag": {func(command string) {
			if strings.HasPrefix(command, "UID EXPUNGE") {
				m.marked[m.mails[4].uid] = false
			}
		}, 1},
		"and one is removed by another client": {func(command string) {
			if strings.HasPrefix(command, "UID EXPUNGE") {
				m.marked[m.mails[4].uid] = false
				m.expunge(500)
			}
		}, 2},
	} {
		m.before = step.before
		if got := dele(t, b, "5", "7", "8"); got != "+OK Goodbye\r\n" {
			t.Fatalf("%s: QUIT: %q", name, got)
		}
		m.before = nil
		m.take()
		events := &recorder{}
		b.Observer = events
		session, err := show1(t, b)
		if err != nil {
			t.Fatal(err)
		}
		if commands, _ := m.take(); len(commands) != step.commands {
			t.Errorf("%s: the next poll costs %q", name, commands)
		}
		if !slices.EqualFunc(session.maildrop.messages, m.mails, func(a message, b mail) bool { return a.uid == b.uid }) {
			t.Errorf("%s: %d messages are listed, want %d", name, session.maildrop.count, len(m.mails))
		}
		if told := of[proxy.MaildropNoticed](events); len(told) > 0 {
			t.Errorf("%s: notices %v", name, told)
		}
		_ = session.Close()
	}
}
