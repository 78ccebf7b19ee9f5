package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
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

// serveMetrics listens on addr, and serves until close.
func serveMetrics(addr string, log *zap.Logger) (*endpoint, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics %q: %w; give an address of this host and a port that is free (ss -ltn shows those that are not)", addr, err)
	}
	errorLog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		return nil, err
	}
	e := &endpoint{Metrics: metrics.New(), url: fmt.Sprintf("http://%s/metrics", l.Addr()), over: make(chan struct{})}
	e.server = &http.Server{
		Handler: e.Metrics, ErrorLog: errorLog, ConnState: e.count, MaxHeaderBytes: 8 << 10,
		ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	go func() {
		defer close(e.over)
		if err := e.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("no metrics are served any more", zap.Error(err)) // the records go on
		}
	}()
	return e, nil
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
