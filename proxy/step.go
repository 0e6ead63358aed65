package proxy

// A Step is a stage in the life of a connection, as operators see it.
type Step uint32

// The steps, in their order.
const (
	StepArriving  Step = iota // PROXY header and admission by the guard
	StepHandshake             // implicit TLS
	StepLogin                 // the dialogue: STARTTLS, and up to complete credentials
	StepVerifying             // guard and backend check the credentials
	StepWaiting               // the answer is known and delayed
	StepOpening               // the session is prepared: a maildrop is listed
	StepSession               // the client is served
	StepParked                // the client is silent, and no goroutine serves it
)

var steps = [...]string{"arriving", "handshake", "login", "verifying", "waiting", "opening", "session", "parked"}

// String returns the step's name.
func (s Step) String() string { return steps[s] }
