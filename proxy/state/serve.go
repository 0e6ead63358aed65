package state

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"slices"
	"time"
)

// The limits of a record's server.
const (
	serverRequests = 64 // at a time
	maxRequest     = 64 << 20
	maxChanged     = 1 << 17 // keys of a request
	serverTimeout  = 30 * time.Second
	serverIdle     = 2 * time.Minute
)

// A Served is a record that NewRecordServer serves: what it is called, and its values.
type Served struct {
	Name  string
	Store Store
}

// NewRecordServer returns a server of some buckets of a record for other nodes, which must
// have keys; see Owner. It serves TLS with its TLSConfig. record returns the record as it is open now. errors gets what goes
// wrong with a connection.
func NewRecordServer(keys Keys, buckets []string, record func(context.Context) (Served, error), errors *log.Logger) (*http.Server, error) {
	config, err := nodeTLS(keys)
	if err != nil {
		return nil, err
	}
	return &http.Server{
		Handler: &recordHandler{buckets: buckets, record: record, requests: make(chan struct{}, serverRequests)}, TLSConfig: config,
		ReadHeaderTimeout: serverTimeout, ReadTimeout: serverTimeout, IdleTimeout: serverIdle, MaxHeaderBytes: 8 << 10, ErrorLog: errors,
	}, nil
}

type recordHandler struct {
	buckets  []string
	record   func(context.Context) (Served, error)
	requests chan struct{}
}

// ServeHTTP implements http.Handler. TLS has checked who asks.
func (h *recordHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case h.requests <- struct{}{}:
		defer func() { <-h.requests }()
	default:
		http.Error(w, "too many requests at a time", http.StatusServiceUnavailable)
		return
	}
	var in ownerRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&in); err != nil {
		http.Error(w, "the request cannot be read", http.StatusBadRequest)
		return
	}
	if len(in.Keys) > maxChanged || len(in.Changes) > maxChanged {
		http.Error(w, "too many keys", http.StatusBadRequest)
		return
	}
	if in.Bucket != MetaBucket && !slices.Contains(h.buckets, in.Bucket) || in.Bucket == MetaBucket && r.URL.Path != "/get" {
		http.Error(w, "this bucket is not for other nodes", http.StatusForbidden)
		return
	}
	record, err := h.record(r.Context())
	if err != nil {
		http.Error(w, printable([]byte(err.Error())), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set(identityField, record.Name)
	h.answer(w, r, record.Store, in)
}

// answer writes the answer to a request, line by line.
func (*recordHandler) answer(w http.ResponseWriter, r *http.Request, store Store, in ownerRequest) {
	lines, control := json.NewEncoder(w), http.NewResponseController(w)
	write := func(a ownerAnswer) error {
		_ = control.SetWriteDeadline(time.Now().Add(serverTimeout)) // a reader of a scan may be slow, not dead
		return lines.Encode(a)
	}
	ctx := r.Context()
	var a ownerAnswer
	var err error
	switch r.URL.Path {
	case "/get":
		keys := make([]string, len(in.Keys))
		for i, key := range in.Keys {
			keys[i] = string(key)
		}
		a.Values, err = store.Get(ctx, in.Bucket, keys)
	case "/swap":
		changes := make([]Change, len(in.Changes))
		for i, c := range in.Changes {
			changes[i] = Change{string(c.Key), c.Version, c.Value}
		}
		a.Swapped, err = store.Swap(context.WithoutCancel(ctx), in.Bucket, changes)
	case "/scan":
		err = store.Scan(ctx, in.Bucket, string(in.Prefix), func(key string, value []byte) error {
			return write(ownerAnswer{Key: []byte(key), Value: value})
		})
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		_ = write(ownerAnswer{Error: err.Error()}) // fails if the other node has left
		return
	}
	if r.URL.Path != "/scan" && write(a) != nil {
		return
	}
	_ = write(ownerAnswer{End: true})
}
