package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// After an upgrade the sessions of before stay in the old process. The new one, which has
// the control socket, asks for them over the pair of sockets:
//
//	new -> old   Ask      list sessions, or end them
//	old -> new   Answer   some sessions; the last Answer of an Ask is Done

// A peerRequest asks a predecessor for its sessions that match Filter.
type peerRequest struct {
	ID     uint64
	Kick   bool // end them
	Filter SessionFilter
}

// A peerAnswer is a part of the answer to the peerRequest with the same ID.
type peerAnswer struct {
	ID       uint64
	Sessions []Session `json:",omitempty"`
	Kicked   int       `json:",omitempty"`
	Error    string    `json:",omitempty"`
	Done     bool      `json:",omitempty"`
}

const (
	askTimeout      = 5 * time.Second
	answerSize      = 200     // sessions in an Answer
	maxPeerSessions = 200_000 // sessions that are kept of a predecessor's answer
)

// asking are the requests to a predecessor that it has not answered yet. The zero value
// is ready.
type asking struct {
	mu      sync.Mutex
	id      uint64
	pending map[uint64]*pendingAnswer
}

// A pendingAnswer has the parts of an answer that have come.
type pendingAnswer struct {
	peerAnswer
	done chan struct{}
}

func (a *asking) begin() (uint64, *pendingAnswer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending == nil {
		a.pending = make(map[uint64]*pendingAnswer)
	}
	a.id++
	p := &pendingAnswer{done: make(chan struct{})}
	a.pending[a.id] = p
	return a.id, p
}

func (a *asking) end(id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pending, id)
}

// receive adds a part of an answer. A part that nobody waits for is dropped.
func (a *asking) receive(part *peerAnswer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pending[part.ID]
	if p == nil {
		return
	}
	p.Kicked += part.Kicked
	if part.Error != "" {
		p.Error = part.Error
	}
	if len(p.Sessions)+len(part.Sessions) > maxPeerSessions {
		p.Error = fmt.Sprintf("it has more than %d", maxPeerSessions)
	} else {
		p.Sessions = append(p.Sessions, part.Sessions...)
	}
	if part.Done {
		delete(a.pending, part.ID)
		close(p.done)
	}
}

// askPredecessor sends a request to the process before the upgrade. The zero peerAnswer
// and nil: there is none, or it has ended. An error says nothing about its sessions.
func (s *Service) askPredecessor(ctx context.Context, kick bool, f SessionFilter) (peerAnswer, error) {
	before := s.predecessor
	if before == nil || before.gone.Load() {
		return peerAnswer{}, nil
	}
	a, err := before.ask(ctx, s.predecessorEnded, kick, f)
	if err != nil {
		return a, fmt.Errorf("the sessions of the process before the upgrade%s are not in this answer: %w", before.name(), err)
	}
	return a, nil
}

// name returns the process id of the peer in parentheses, if it is known.
func (r *Peer) name() string {
	if r.pid == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d)", r.pid)
}

func (r *Peer) ask(ctx context.Context, ended <-chan struct{}, kick bool, f SessionFilter) (peerAnswer, error) {
	if r.pid == 0 {
		return peerAnswer{}, errors.New("it is of a version that does not tell them")
	}
	if !r.served.Load() {
		return peerAnswer{}, errors.New("the upgrade has not ended: try again")
	}
	id, p := r.asking.begin()
	defer r.asking.end(id)
	if err := r.send(message{Ask: &peerRequest{ID: id, Kick: kick, Filter: f}}); err != nil {
		return peerAnswer{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("no answer within %v", askTimeout))
	defer cancel()
	select {
	case <-p.done:
	case <-ended: // and its sessions with it
		return peerAnswer{}, nil
	case <-ctx.Done():
		return peerAnswer{}, context.Cause(ctx)
	}
	if p.Error != "" {
		return p.peerAnswer, errors.New(p.Error)
	}
	return p.peerAnswer, nil
}

// answerSuccessor answers a request of the successor with the sessions of this process,
// and of its own predecessor.
func (s *Service) answerSuccessor(next *successor, r *peerRequest) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	part := peerAnswer{ID: r.ID}
	var err error
	if r.Kick {
		part.Kicked, err = s.endSessions(ctx, r.Filter)
	} else {
		err = s.eachSession(ctx, r.Filter, func(l Session) error {
			if l.Process == 0 {
				l.Process = os.Getpid()
			}
			if part.Sessions = append(part.Sessions, l); len(part.Sessions) < answerSize {
				return nil
			}
			err := next.send(message{Answer: &part})
			part.Sessions = nil
			return err
		})
	}
	if err != nil {
		part.Error = err.Error()
	}
	part.Done = true
	_ = next.send(message{Answer: &part}) // an error: the successor has ended
}
