package main

import (
	"log/slog"
	"net/http"
	"time"
)

// Bounds of what is asked by HTTP, whoever asks. How many connections there may be
// is listen.Limited's.
const (
	webRequest = 5 * time.Second  // to send one
	webAnswer  = 15 * time.Second // to make and take the answer, from the end of the request's header; a scrape may take 10 s
	webHeader  = 4 << 10          // octets of a request's header, and as many more as net/http adds
)

// newWebServer returns what serves a handler of Postern's own by HTTP. A connection
// is good for one request: none is idle, and nobody keeps one that others wait for.
func (s *site) newWebServer(h http.Handler) *http.Server {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: webRequest, ReadTimeout: webRequest, WriteTimeout: webAnswer,
		MaxHeaderBytes: webHeader, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	server.SetKeepAlivesEnabled(false)
	return server
}
