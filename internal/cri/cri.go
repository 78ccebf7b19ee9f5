// Package cri asks a container runtime what Kubernetes calls its containers: over
// its CRI socket, as kubelet does.
//
// A runtime may be slow, hang or be restarted: whoever asks never waits for it, and
// what it says is bounded. Only containers that a pod has have names here; of one that
// was removed before its names were asked for, none are known.
package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tcptrace/tcptrace/pkg/events"
)

const (
	askTimeout = 5 * time.Second
	// The rest after it was asked: all containers are listed, so many new ones are one
	// question. It grows while the runtime does not answer, up to the last one.
	minRest = time.Second
	maxRest = 30 * time.Second
	// The rest in times of what the answer took, which is work of the runtime.
	restAfterAsking = 20

	// What kubelet takes too (maxMsgSize of its client): it would not run with more.
	maxAnswer = 16 << 20
	// Ids whose answer is awaited, or that the runtime does not have.
	maxWanted = 1 << 12
	// No name in Kubernetes is longer: it is part of a domain name.
	maxName = 253
)

// A Runtime is a container runtime. Its methods are for one goroutine and return at
// once; a goroutine of its own does the asking.
type Runtime struct {
	conn   *grpc.ClientConn
	client runtimeapi.RuntimeServiceClient
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{}

	mu       sync.Mutex                  // never held while the runtime is asked
	names    map[string]events.Container // by id, of the last answer
	next     uint64                      // the number of the next question
	answered uint64                      // the questions before this one are
	wanted   map[string]uint64           // id that was asked for and not found -> the first question that tells
	found    []events.Container
	err      error
}

// Path returns the path of the socket that an endpoint names: unix:///PATH, as kubelet
// and crictl take it, or just the path.
func Path(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !filepath.IsAbs(path) {
		return "", errors.New("not the path of a socket; give it as unix:///run/containerd/containerd.sock or /run/crio/crio.sock")
	}
	return path, nil
}

// Open asks the runtime at this endpoint for all its containers, so that it is certain
// that it can be asked, and waits for the answer.
func Open(ctx context.Context, endpoint string) (*Runtime, error) {
	path, err := Path(endpoint)
	if err != nil {
		return nil, err
	}
	// What keeps a connection from being made is said best by connect(2) itself.
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w; give the socket of a running container runtime, and run as a user that may write to it", err)
	}
	_ = c.Close()
	target := url.URL{Scheme: "unix", Path: path}
	retry := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: askTimeout}
	retry.Backoff.MaxDelay = minRest // of asking, which is rarer still
	conn, err := grpc.NewClient(target.String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, err
	}
	r := &Runtime{
		conn: conn, client: runtimeapi.NewRuntimeServiceClient(conn),
		done: make(chan struct{}), wake: make(chan struct{}, 1), wanted: map[string]uint64{},
	}
	if r.names, err = r.list(ctx); err != nil {
		_ = conn.Close() // its error can say no more
		return nil, fmt.Errorf("%s; %s", status.Convert(err).Message(), mend(err, path))
	}
	ctx, r.cancel = context.WithCancel(context.Background())
	go r.run(ctx)
	return r, nil
}

// mend says what to do about what a runtime answers at first.
func mend(err error, path string) string {
	switch status.Code(err) {
	case codes.Unimplemented:
		return "it is not a CRI socket of version v1: give that of containerd 1.6 or later, or of CRI-O, and if containerd's config.toml has cri in disabled_plugins, take it out"
	case codes.DeadlineExceeded:
		return "see whether the runtime hangs: crictl --runtime-endpoint unix://" + path + " ps"
	}
	return "see whether it is the CRI socket of a container runtime: crictl --runtime-endpoint unix://" + path + " ps"
}

// Close ends the asking.
func (r *Runtime) Close() {
	r.cancel()
	<-r.done
	_ = r.conn.Close()
}

// Container returns the names of the container with this id. If they are not known, the
// runtime is asked for them, and Found may have them later.
func (r *Runtime) Container(id string) (events.Container, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.names[id]; ok {
		return c, true
	}
	if _, ok := r.wanted[id]; ok {
		return events.Container{}, false
	}
	if len(r.wanted) >= maxWanted {
		r.forget()
	}
	if len(r.wanted) < maxWanted {
		r.wanted[id] = r.next // one that is on its way may have come too early
		r.ask()
	}
	return events.Container{}, false
}

// forget makes place in wanted: what the runtime does not have, it may be asked for again.
func (r *Runtime) forget() {
	maps.DeleteFunc(r.wanted, func(_ string, n uint64) bool { return n < r.answered })
}

func (r *Runtime) ask() {
	select {
	case r.wake <- struct{}{}:
	default: // it is awake
	}
}

// Found returns the containers that Container has not known, and that are known since the
// last call; and why the runtime has not answered its last question, nil if it has.
func (r *Runtime) Found() ([]events.Container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.found
	r.found = nil
	return found, r.err
}

// Settled reports whether there is nothing left that may be Found.
func (r *Runtime) Settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.wanted {
		if n >= r.answered {
			return false
		}
	}
	return len(r.found) == 0
}

// run asks whenever there is something to be asked for.
func (r *Runtime) run(ctx context.Context) {
	defer close(r.done)
	backOff := minRest
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		r.mu.Lock()
		r.next++
		r.mu.Unlock()
		begun := time.Now()
		names, err := r.list(ctx)
		rest := max(minRest, restAfterAsking*time.Since(begun))
		if err != nil {
			rest, backOff = backOff, min(2*backOff, maxRest)
		} else {
			backOff = minRest
		}
		r.answer(names, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// answer takes the answer to the question that was asked last.
func (r *Runtime) answer(names map[string]events.Container, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err = err; err != nil {
		r.ask() // again
		return
	}
	r.names, r.answered = names, r.next
	for id := range r.wanted {
		if c, ok := names[id]; ok {
			r.found = append(r.found, c)
			delete(r.wanted, id)
		}
	}
}

// list asks for the names of all containers, by id.
func (r *Runtime) list(ctx context.Context) (map[string]events.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	containers, err := r.client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	// After them: a pod is there before its containers.
	pods, err := r.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	byID := map[string]*runtimeapi.PodSandboxMetadata{}
	for _, p := range pods.Items {
		byID[p.GetId()] = p.GetMetadata()
	}
	names := map[string]events.Container{}
	for _, c := range containers.Containers {
		pod := byID[c.GetPodSandboxId()] // nil, of which all is empty, if it has just been removed
		named := events.Container{ID: c.GetId(), Name: c.GetMetadata().GetName(), Pod: pod.GetName(), Namespace: pod.GetNamespace()}
		if isName(named.Name) && isName(named.Pod) && isName(named.Namespace) {
			names[named.ID] = named
		}
	}
	return names, nil
}

// isName reports whether s can be a name in Kubernetes, and so is short, and printed as it is.
func isName(s string) bool {
	return s != "" && len(s) <= maxName && strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) < 0
}
