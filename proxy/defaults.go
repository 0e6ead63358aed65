package proxy

import "time"

// The default times. They are here because configs fills them in, and the package
// that waits applies them where its field is zero.
const (
	DefaultHandshake      = 10 * time.Second // a client's TLS handshake
	DefaultLogin          = 60 * time.Second // a client's login
	DefaultStall          = 5 * time.Minute  // a peer that reads nothing
	DefaultDial           = 10 * time.Second // connecting to a backend
	DefaultReply          = 30 * time.Second // one answer of a backend
	DefaultIMAPIdle       = 35 * time.Minute // longer than the 29 minutes after which a client repeats IDLE: RFC 2177 section 3
	DefaultPOP3Idle       = 10 * time.Minute // the minimum of RFC 1939 section 3
	DefaultSieveIdle      = 30 * time.Minute // the minimum of RFC 5804 section 1.2
	DefaultSubmissionIdle = 5 * time.Minute  // the minimum of RFC 5321 section 4.5.3.2.7
	DefaultHookTimeout    = 2 * time.Second  // one request to a routing hook
	DefaultHookCache      = time.Minute      // for which an answer of a routing hook is valid
)

// DefaultSeparators are the characters that no account name may contain: the
// wildcards of IMAP, which Dovecot also uses as separators of master users.
const DefaultSeparators = "*%"
