package bridge

import (
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
)

const (
	bye  = "\nC: Q LOGOUT\nS: Q OK x\n"
	mark = "C: T1 UID STORE 11 +FLAGS.SILENT (\\\\Deleted)\nC: T2 UID SEARCH DELETED\nS: T1 OK x\n"
	left = "C: T8 UID SEARCH UID 11\n"
)

// Criterion: with delete: isolate a server without UIDPLUS is sent EXPUNGE only while nothing of other clients is marked, and their marks come back.
func TestIsolateSparesWhatOthersHaveMarked(t *testing.T) {
	const (
		failed = `-ERR \[SYS/TEMP] Some deleted messages were not removed (session ID42)`
		clear  = mark + "S: * SEARCH 11 13 500\nS: T2 OK x\nC: T3 UID STORE 13,500 -FLAGS.SILENT (\\\\Deleted)\nC: T4 UID SEARCH DELETED\n"
		remark = "C: T7 UID STORE 13,500 +FLAGS.SILENT (\\\\Deleted)\n"
		clean  = "S: T3 OK x\nS: * SEARCH 11\nS: T4 OK x\nC: T5 UID SEARCH DELETED\nS: * SEARCH 11\nS: T5 OK x\nC: T6 EXPUNGE\n"
		gone   = "S: * 1 EXPUNGE\nS: T6 OK x\n"
	)
	for _, test := range []struct{ name, script, quit string }{
		{"nothing else is marked", mark + "S: * SEARCH 11\nS: T2 OK x\nC: T3 UID SEARCH DELETED\nS: * SEARCH 11\nS: T3 OK x\nC: T4 EXPUNGE\nS: * 1 EXPUNGE\nS: T4 OK x\nC: T5 UID SEARCH UID 11\nS: * SEARCH\nS: T5 OK x", "+OK Goodbye"},
		{"others are", clear + clean + gone + remark + left + "S: T7 OK x\nS: * SEARCH\nS: T8 OK x", "+OK Goodbye"},
		{"marks do not come back", clear + clean + gone + remark + left + "S: T7 NO x\nS: * SEARCH\nS: T8 OK x", "+OK Goodbye"},
		{"marks do not go", clear + "S: T3 NO x\nS: * SEARCH 11 13\nS: T4 OK x\nC: T5 UID STORE 13,500 +FLAGS.SILENT (\\\\Deleted)\nS: T5 OK x", failed},
		{"EXPUNGE refused", clear + clean + "S: T6 NO x\n" + remark + "S: T7 OK x", failed},
		{"not removed", clear + clean + gone + remark + left + "S: T7 OK x\nS: * SEARCH 11\nS: T8 OK x", failed},
		{"SEARCH refused", mark + "S: T2 NO x", failed},
		{"others mark all the time", mark + "S: * SEARCH 11 12\nS: T2 OK x\nC: T3 UID STORE 12 *\nC: T4 UID SEARCH DELETED\nS: T3 OK x\nS: * SEARCH 11 13\nS: T4 OK x\n" +
			"C: T5 UID STORE 13 -*\nC: T6 UID SEARCH DELETED\nS: T5 OK x\nS: * SEARCH 14\nS: T6 OK x\nC: T7 UID STORE 14 -*\nC: T8 UID SEARCH DELETED\nS: T7 OK x\nS: * SEARCH 15\nS: T8 OK x\n" +
			"C: T9 UID STORE 15 -*\nS: T9 OK x\nC: T10 UID STORE 12:15 +FLAGS.SILENT (\\\\Deleted)\nS: T10 OK x", failed},
		{"a mark that the first look leaves out", mark + "S: * SEARCH 11\nS: T2 OK x\nC: T3 UID SEARCH DELETED\nS: * SEARCH 11 12\nS: T3 OK x\nC: T4 UID STORE 12 -*\nC: T5 UID SEARCH DELETED\nS: T4 OK x\nS: * SEARCH 11\nS: T5 OK x\n" +
			"C: T6 UID SEARCH DELETED\nS: * SEARCH 11\nS: T6 OK x\nC: T7 EXPUNGE\nS: * 1 EXPUNGE\nS: T7 OK x\nC: T8 UID STORE 12 *\nC: T9 UID SEARCH UID 11\nS: T8 OK x\nS: * SEARCH\nS: T9 OK x", "+OK Goodbye"},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, opened(5, 5, 5)+test.script+bye)
			r := run(t, &Backend{Record: &memory{}, Delete: Isolate, LogIn: connected(near, "IMAP4rev1"), Estimates: true})
			proxytest.Transcript(t, r.conn, "C: DELE 1\nS: +OK *\nC: QUIT\nS: "+test.quit+"\nS: <EOF>")
			if failed := of[proxy.UpdateFailed](r.events); len(failed) == 0 && (test.quit != "+OK Goodbye" || test.name == "marks do not come back") {
				t.Error("nobody is told")
			}
		})
	}
}

// Criterion: a connection that is lost while the marks of others are away costs them only if no other one can be had.
func TestIsolateGoesOnAfterALoss(t *testing.T) {
	const cleared = mark + "S: * SEARCH 11 13\nS: T2 OK x\nC: T3 UID STORE 13 -FLAGS.SILENT (\\\\Deleted)\nC: T4 UID SEARCH DELETED\nS: T3 OK x\nS: * SEARCH 11\nS: T4 OK x\nC: T5 UID SEARCH DELETED\nS: * SEARCH 11\nS: T5 OK x\nC: T6 EXPUNGE\n"
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5, 5, 5)+cleared+"S: * 1 EXPUNGE\nS: <EOF>")
	near2, far2 := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far2, again+mark+`
		S: * SEARCH
		S: T2 OK x
		C: T3 UID SEARCH DELETED
		S: * SEARCH
		S: T3 OK x
		C: T4 EXPUNGE
		S: T4 OK x
		C: T5 UID STORE 13 +FLAGS.SILENT (\\Deleted)
		C: T6 UID SEARCH UID 11
		S: T5 OK x
		S: * SEARCH
		S: T6 OK x
		C: Q LOGOUT
		S: Q OK x
	`)
	r := run(t, &Backend{Record: &memory{}, Delete: Isolate, LogIn: connected(near, "IMAP4rev1", near2), Estimates: true})
	proxytest.Transcript(t, r.conn, "C: DELE 1\nS: +OK *\nC: QUIT\nS: +OK Goodbye\nS: <EOF>")
	if failed := of[proxy.UpdateFailed](r.events); len(failed) > 0 {
		t.Errorf("UpdateFailed: %+v", failed)
	}
}

func TestIsolateIsExpungeWithUIDPLUS(t *testing.T) {
	deleting(t, Isolate, capabilities, "C: T1 UID STORE 11 +FLAGS.SILENT (\\\\Deleted)\nS: T1 OK x\nC: T2 UID EXPUNGE 11\nS: T2 OK x", "+OK Goodbye")
}
