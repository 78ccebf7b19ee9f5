package main

import (
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/metrics"
)

// Connections to the endpoint at once: descriptors that scans of the host need are not
// to be used up by whoever may connect.
const maxMetricsConns = 32

// endpoint serves the metrics of a run.
type endpoint struct {
	*metrics.Metrics
	url    string
	server *http.Server
	conns  atomic.Int32
	over   chan struct{} // closed when the server has stopped
}

// serveMetrics listens on --metrics, and serves until close.
func serveMetrics(cfg *config, log *zap.Logger) (*endpoint, error) {
	var access *metrics.Access
	scheme, addr := "http", cfg.metrics
	if cfg.metricsConfig != "" {
		var err error
		access, err = metrics.OpenAccess(cfg.metricsConfig, func(err error) {
			log.Warn("--metrics-config: nobody may read the metrics until this is mended", zap.Error(err))
		})
		if err != nil {
			return nil, usagef("--metrics-config %q: %w", cfg.metricsConfig, err)
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics %q: %w; give an address of this host and a port that is free (ss -ltn shows those that are not)", addr, err)
	}
	serve := func(s *http.Server) error { return s.Serve(l) }
	secure := access.TLS()
	if secure != nil {
		scheme, serve = "https", func(s *http.Server) error { return s.ServeTLS(l, "", "") }
	}
	e := &endpoint{Metrics: metrics.New(access), url: fmt.Sprintf("%s://%s/metrics", scheme, l.Addr()), over: make(chan struct{})}
	e.server = &http.Server{
		TLSConfig: secure,
		Handler:   e.Metrics, ErrorLog: stdlog.New(serverLog{log}, "", 0), ConnState: e.count, MaxHeaderBytes: 8 << 10,
		ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	go func() {
		defer close(e.over)
		if err := serve(e.server); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("no metrics are served any more", zap.Error(err)) // the records go on
		}
	}()
	return e, nil
}

// serverLog is where an http.Server writes.
type serverLog struct{ *zap.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	if strings.HasPrefix(text, "http: TLS handshake error") {
		l.Debug(text) // else whoever can connect could fill the log
	} else {
		l.Warn(text)
	}
	return len(line), nil
}

// count turns away connections that are too many.
func (e *endpoint) count(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if e.conns.Add(1) > maxMetricsConns {
			_ = c.Close() // whoever reads from it learns that
		}
	case http.StateClosed:
		e.conns.Add(-1)
	}
}

// publish is what a scrape sees from now on; unless that would cost too much again.
func (r *runner) publish() {
	if r.served == nil {
		return
	}
	r.served.GoesOn()
	if time.Now().Before(r.nextCensus) {
		return
	}
	begun := cpuTime()
	s := r.pipe.stats()
	r.served.Publish(metrics.Snapshot{
		Census: r.pipe.tracker.Census(), Counts: r.pipe.tracker.Counts(), Dwells: r.pipe.tracker.Dwells(),
		Lost: s.Lost, Probes: s.Probes, Unprinted: s.Unprinted,
	})
	r.nextCensus = time.Now().Add(restAfterScan * (cpuTime() - begun))
}

// close ends the server, a scrape that is under way too.
func (e *endpoint) close() {
	_ = e.server.Close() // it has nothing to lose
	<-e.over
}
