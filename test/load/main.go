// Command load does to an nginx, a haproxy and a redis what clients do to
// servers: polite ones, and those that hang up in the middle. It closes what it
// opens at once when there is no more to come; so whatever sits in CLOSE_WAIT for
// long, at either end, is somebody else's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

var (
	nginx    = flag.String("nginx", "", "`address` of an nginx; serves /, /big and, in no less than 4 s, /slow")
	haproxy  = flag.String("haproxy", "", "`address` of a haproxy before that nginx")
	redis    = flag.String("redis", "", "`address` of a redis")
	duration = flag.Duration("for", 10*time.Second, "how long new connections are opened")
	rate     = flag.Int("rate", 250, "connections a second, at most")
	abrupt   = flag.Bool("abrupt", false, "talk to redis, and be killed in the middle of it: what load starts again and again")
)

// A habit is one way that clients have of using a server.
type habit struct {
	name    string
	clients int // that have it, at a time
	once    func() error
}

var habits = []habit{
	{"nginx: many requests on a connection", 4, func() error { return keepAlive(*nginx) }},
	{"nginx: the server closes first", 4, func() error { return serverCloses(*nginx, "/") }},
	{"nginx: the client closes first", 4, func() error { return clientCloses(*nginx) }},
	{"nginx: half-closed after the request", 4, func() error { return halfCloses(*nginx, "/") }},
	{"nginx: reset before the request", 1, func() error { return resets(*nginx, "") }},
	{"nginx: reset within the request", 1, func() error { return resets(*nginx, "GET / HTT") }},
	{"nginx: reset within the answer", 2, func() error { return resets(*nginx, get("/big", "close")) }},
	{"nginx: closed within the answer", 2, func() error { return hangsUp(*nginx, "/big") }},
	{"nginx: idle until the server closes", 4, func() error { return idles(*nginx, get("/", "keep-alive")) }},
	{"nginx: silent until the server closes", 4, func() error { return idles(*nginx, "") }},
	{"nginx: a slow answer", 2, func() error { return serverCloses(*nginx, "/slow") }},
	{"nginx: reset within a slow answer", 2, func() error { return resets(*nginx, get("/slow", "close")) }},
	{"nginx: closed within a slow answer", 2, func() error { return hangsUp(*nginx, "/slow") }},
	{"nginx: closed between two parts of a slow answer", 2, func() error { return hangsUpBetween(*nginx) }},

	{"haproxy: many requests on a connection", 4, func() error { return keepAlive(*haproxy) }},
	{"haproxy: the server closes first", 4, func() error { return serverCloses(*haproxy, "/") }},
	{"haproxy: the client closes first", 4, func() error { return clientCloses(*haproxy) }},
	{"haproxy: half-closed after the request", 4, func() error { return halfCloses(*haproxy, "/") }},
	{"haproxy: reset before the request", 1, func() error { return resets(*haproxy, "") }},
	{"haproxy: reset within the request", 1, func() error { return resets(*haproxy, "GET / HTT") }},
	{"haproxy: reset within the answer", 2, func() error { return resets(*haproxy, get("/big", "close")) }},
	{"haproxy: closed within the answer", 2, func() error { return hangsUp(*haproxy, "/big") }},
	{"haproxy: idle until the server closes", 4, func() error { return idles(*haproxy, get("/", "keep-alive")) }},
	{"haproxy: silent until the server closes", 4, func() error { return idles(*haproxy, "") }},
	{"haproxy: a slow answer", 2, func() error { return serverCloses(*haproxy, "/slow") }},
	{"haproxy: reset within a slow answer", 2, func() error { return resets(*haproxy, get("/slow", "close")) }},
	{"haproxy: closed within a slow answer", 2, func() error { return hangsUp(*haproxy, "/slow") }},
	{"haproxy: closed between two parts of a slow answer", 2, func() error { return hangsUpBetween(*haproxy) }},
	// Not of nginx, which takes a half-close for an abort while it is in an answer.
	{"haproxy: half-closed, a slow answer", 4, func() error { return halfCloses(*haproxy, "/slow") }},

	{"redis: a pipeline", 4, pipeline},
	{"redis: the server closes first", 2, quit},
	{"redis: half-closed after the commands", 2, halfClosedPipeline},
	{"redis: idle until the server closes", 4, func() error { return idles(*redis, "PING\r\n") }},
	{"redis: killed within a pipeline", 1, killed},
}

func main() {
	flag.Parse()
	if *abrupt {
		fmt.Fprintln(os.Stderr, "load:", beKilled())
		os.Exit(1)
	}
	if *rate < 1 || *rate > 500 || *duration > time.Minute {
		fmt.Fprintln(os.Stderr, "load: -rate from 1 to 500, -for at most 1m")
		os.Exit(2)
	}
	done, err := load()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(done)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// load has all habits at once, and returns how often each was gone through. It
// ends at the first that goes wrong.
func load() (map[string]int, error) {
	ctx, fail := context.WithCancelCause(context.Background())
	defer fail(nil)
	ctx, stop := context.WithTimeout(ctx, *duration)
	defer stop()
	go func() {
		t := time.NewTicker(time.Second / time.Duration(*rate))
		defer t.Stop()
		for range t.C {
			pace <- struct{}{}
		}
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := map[string]int{}
	for _, h := range habits {
		for range h.clients {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := h.once(); err != nil {
						fail(fmt.Errorf("%s: %w", h.name, err))
						return
					}
					mu.Lock()
					done[h.name]++
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	for _, h := range habits {
		if done[h.name] == 0 {
			return nil, fmt.Errorf("%s: not once", h.name)
		}
	}
	return done, nil
}

// killed runs a client that does not get to close anything.
func killed() error {
	cmd := exec.Command(os.Args[0], slices.Concat(os.Args[1:], []string{"-abrupt"})...)
	cmd.Stderr = os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("the client that was to be killed: %w", err)
}
