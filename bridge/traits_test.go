package bridge

import (
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestInspectTellsWhatAServerLacks(t *testing.T) {
	const status = "C: T2 STATUS INBOX *\nC: T3 SELECT INBOX\n"
	for _, test := range []struct {
		name, capabilities, script string
		want                       Traits
	}{
		{"all there is", "IMAP4rev1 UIDPLUS MOVE SPECIAL-USE", `
			C: T1 SELECT INBOX
			S: * 0 EXISTS
			S: * OK [UIDVALIDITY 7] x
			S: * OK [UIDNEXT 9] x
			S: * OK [PERMANENTFLAGS (\Deleted \*)] x
			S: T1 OK [READ-WRITE] x
			` + status + `
			S: * STATUS INBOX (MESSAGES 0 UIDNEXT 9 UIDVALIDITY 7)
			S: T2 OK x
			S: * 0 EXISTS
			S: * OK [UIDVALIDITY 7] x
			S: * OK [UIDNEXT 9] x
			S: T3 OK [READ-WRITE] x
			C: T4 LIST (SPECIAL-USE) "" "*"
			S: * LIST (\Trash) "/" Bin
			S: T4 OK x
		`, Traits{UIDPlus: true, Move: true, Keywords: true, UIDNext: true, StatusUIDNext: true, Trash: "Bin"}},
		{"nothing", "IMAP4rev1", `
			C: T1 SELECT INBOX
			S: * 0 EXISTS
			S: * OK [UIDVALIDITY 7] x
			S: T1 OK x
			` + status + `
			S: T2 NO x
			S: * 0 EXISTS
			S: * OK [UIDVALIDITY 7] x
			S: * OK [PERMANENTFLAGS ()] x
			S: T3 OK [READ-ONLY] x
			C: T4 LIST "" "*"
			S: T4 OK x
		`, Traits{ReadOnly: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, test.script+"C: Q LOGOUT\nS: Q OK x")
			got, err := (&Backend{LogIn: connected(near, test.capabilities)}).Inspect(t.Context(), &proxy.Login{})
			if err != nil || got != test.want {
				t.Errorf("Inspect = %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}
