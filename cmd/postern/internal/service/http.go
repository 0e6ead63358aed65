package service

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"postern/proxy/listen"
)

// serveEndpoints serves the new endpoints at their listeners in opened, and ends endpoints
// whose address has changed. Metrics are served beyond the last session, so that they show
// a drain to its end.
func (s *Service) serveEndpoints(ctx context.Context, g *generation, opened map[string]net.Listener) {
	for _, w := range g.endpoints() {
		if s.endpoints[w.key].address == w.address {
			continue
		}
		if before := s.endpoints[w.key].server; before != nil {
			_ = before.Close()
		}
		delete(s.endpoints, w.key)
		ln := opened[w.key]
		if ln == nil {
			continue
		}
		server := w.server
		if server == nil {
			server = newHTTPServer(s.log, w.handler())
		}
		s.endpoints[w.key] = openEndpoint{w.address, server}
		s.log.Info("serving HTTP", "what", w.what, "address", ln.Addr().String())
		s.wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = server.Close() })
			defer stop()
			limited := net.Listener(listen.Limited(ln, w.allow))
			if w.server != nil {
				limited = tls.NewListener(limited, server.TLSConfig)
			}
			if err := server.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("not served by HTTP", "what", w.what, "err", err)
			}
		})
	}
}

// Bounds of HTTP requests. listen.Limited bounds the number of connections.
const (
	requestTimeout = 5 * time.Second  // time to send a request
	webAnswer      = 15 * time.Second // time to make and read the answer, from the end of the request's header; a scrape may take 10 s
	webHeader      = 4 << 10          // octets of a request's header, and as many more as net/http adds
)

// newHTTPServer returns the HTTP server for a handler of Postern's own. A connection serves
// one request, so that no idle connection blocks others.
func newHTTPServer(log *slog.Logger, h http.Handler) *http.Server {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: webAnswer,
		MaxHeaderBytes: webHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	server.SetKeepAlivesEnabled(false)
	return server
}
