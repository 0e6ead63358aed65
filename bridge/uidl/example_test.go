package uidl_test

import (
	"fmt"

	"postern/bridge/uidl"
)

// A client that has seen the UIDLs of Cyrus sees them again; new mail gets those of
// the format that is used from now on.
func Example() {
	cyrus, err := uidl.Parse("cyrus")
	if err != nil {
		fmt.Println(err)
		return
	}
	record := uidl.New(1700000000, cyrus)
	record.Use(uidl.Dovecot, 3) // from UID 3 on
	for uid := range uint32(3) {
		fmt.Printf("%s\n", record.Current().Append(nil, uid+1))
	}
	// Output:
	// 1700000000.1
	// 1700000000.2
	// 000000036553f100
}

// Detect finds the format that an old server uses.
func ExampleDetect() {
	shown := []string{"1700000000.1", "1700000000.7"}
	for _, guess := range uidl.Detect(shown, []uint32{1, 7, 9}, 1700000000) {
		fmt.Println(guess.Name, guess.Matched)
	}
	// Output:
	// dovecot-0.99 2
}

// When UIDVALIDITY changes, messages are found again by their fingerprints and keep
// their UIDLs.
func ExampleRecord_Recognize() {
	record := uidl.New(7, uidl.Dovecot)
	record.Current().Put([]uidl.Entry{{UID: 1, Short: 0xabc}})

	entries, _ := record.Recognize([]uidl.Fingerprint{{UID: 40, Short: 0xabc}, {UID: 41, Short: 0xdef}})
	record.Renumber(8, uidl.Dovecot, entries, 0)
	fmt.Printf("%s\n%s\n", record.Current().Append(nil, 40), record.Current().Append(nil, 41))
	// Output:
	// 0000000100000007
	// 0000002900000008
}
