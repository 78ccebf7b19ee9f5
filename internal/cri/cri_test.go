package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// patience is how long a test waits for what must come: more than the rests that a
// Runtime makes before it asks again.
const patience = 15 * time.Second

// A fake is a container runtime that serves the real protocol. It has no more of
// a runtime than its lists.
type fake struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	t    *testing.T
	path string

	mu         sync.Mutex
	containers []*runtimeapi.Container
	pods       []*runtimeapi.PodSandbox
	lists      int
	atOnce     int                         // lists that are being made
	before     func(context.Context) error // of every list, nil for nothing
	server     *grpc.Server
}

func newFake(t *testing.T) *fake {
	t.Helper()
	// Not t.TempDir: with a long test name, the path would not fit an address.
	dir, err := os.MkdirTemp("", "cri")
	check(t, err)
	f := &fake{t: t, path: filepath.Join(dir, "cri.sock")}
	f.start()
	t.Cleanup(func() {
		f.stop()
		check(t, os.RemoveAll(dir))
	})
	return f
}

func (f *fake) start() {
	f.t.Helper()
	l, err := net.Listen("unix", f.path)
	check(f.t, err)
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, f)
	go func() { _ = server.Serve(l) }()
	f.server = server
}

// stop closes its socket too, which removes it.
func (f *fake) stop() { f.server.Stop() }

func (f *fake) ListContainers(ctx context.Context, _ *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f.mu.Lock()
	f.lists++
	if f.atOnce++; f.atOnce > 1 {
		f.t.Errorf("asked %d questions at once, want one after the other", f.atOnce)
	}
	out := &runtimeapi.ListContainersResponse{Containers: f.containers}
	before := f.before
	f.mu.Unlock()
	defer f.set(func() { f.atOnce-- })
	if before == nil {
		return out, nil
	}
	return out, before(ctx)
}

func (f *fake) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ListPodSandboxResponse{Items: f.pods}, nil
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists
}

// add starts a container, in a pod of its own, and returns what is to be told of it.
func (f *fake) add(id, namespace, pod, name string) events.Container {
	f.set(func() {
		f.pods = append(f.pods, &runtimeapi.PodSandbox{Id: "pod-" + id, Metadata: &runtimeapi.PodSandboxMetadata{Name: pod, Namespace: namespace}})
		f.containers = append(f.containers, &runtimeapi.Container{
			Id: id, PodSandboxId: "pod-" + id, Metadata: &runtimeapi.ContainerMetadata{Name: name},
		})
	})
	return events.Container{ID: id, Name: name, Pod: pod, Namespace: namespace}
}

func (f *fake) open() *Runtime {
	f.t.Helper()
	r, err := Open(context.Background(), f.path)
	check(f.t, err)
	f.t.Cleanup(r.Close)
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// knows checks that what the runtime said before is known without asking.
func knows(t *testing.T, r *Runtime, want events.Container) {
	t.Helper()
	if got, ok := r.Container(want.ID); !ok || got != want {
		t.Errorf("%.70s: got %+v, known %v; want %+v", want.ID, got, ok, want)
	}
}

// asks checks that the container is not known yet.
func asks(t *testing.T, r *Runtime, id string) {
	t.Helper()
	if got, ok := r.Container(id); ok {
		t.Errorf("%s: got %+v, want it not to be known", id, got)
	}
}

// finds waits until these containers were found, which were asked for.
func finds(t *testing.T, r *Runtime, want ...events.Container) {
	t.Helper()
	var got []events.Container
	for end := time.Now().Add(patience); len(got) < len(want) && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		found, _ := r.Found()
		got = append(got, found...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("found (+) and want (-) differ:\n%s", diff)
	}
}

// settles waits until everything that was asked for is answered.
func settles(t *testing.T, r *Runtime) {
	t.Helper()
	await(t, "all to be answered", r.Settled)
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func TestWhatIsThereAtFirstIsKnownAtOnce(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	a, b := f.add("a", "shop", "cart-0", "web"), f.add("b", "kube-system", "dns-abc", "dns")
	long := f.add("c", strings.Repeat("n", 253), strings.Repeat("p", 253), strings.Repeat("c", 253))
	r := f.open()
	for _, c := range []events.Container{a, b, long} {
		knows(t, r, c)
	}
	if got := f.asked(); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
	finds(t, r)
}

// Whatever the runtime says, only what can be a name is passed on: it goes to a terminal
// and into recordings.
func TestWhatIsNoNameIsNone(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	for i, bad := range []string{"", strings.Repeat("x", 254), "a\x00b", "a\nb", "\x1b[2J", "a b", "ü"} {
		f.add(fmt.Sprintf("namespace %d", i), bad, "pod", "name")
		f.add(fmt.Sprintf("pod %d", i), "namespace", bad, "name")
		f.add(fmt.Sprintf("name %d", i), "namespace", "pod", bad)
	}
	f.containers = append(f.containers,
		&runtimeapi.Container{Id: "without a pod", PodSandboxId: "gone", Metadata: &runtimeapi.ContainerMetadata{Name: "a"}},
		&runtimeapi.Container{Id: "without anything"})
	f.pods = append(f.pods, &runtimeapi.PodSandbox{})
	good := f.add("good", "shop", "cart-0", "web")
	r := f.open()
	for _, c := range f.containers {
		if c.Id != good.ID {
			asks(t, r, c.Id)
		}
	}
	knows(t, r, good)
	settles(t, r)
	finds(t, r)
}

func TestAContainerThatStartsLaterIsFound(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	first := f.add("first", "shop", "cart-0", "web")
	asks(t, r, first.ID)
	finds(t, r, first)
	knows(t, r, first)
	second := f.add("second", "shop", "cart-1", "web")
	asks(t, r, second.ID)
	finds(t, r, second)
}

// One that the runtime does not have, another one's on the same host for example, is
// asked for once.
func TestWhatTheRuntimeDoesNotHaveIsNotAskedForAgain(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	for range 3 {
		asks(t, r, "docker's")
		settles(t, r)
	}
	if got := f.asked(); got != 2 {
		t.Errorf("asked %d times, want twice: at first, and for this one", got)
	}
}

// The answer to a question that is on its way may be older than the container.
func TestAContainerThatStartsDuringAQuestionIsFoundByTheNext(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	asking, goOn := make(chan struct{}, 9), make(chan struct{})
	f.set(func() {
		f.before = func(context.Context) error { asking <- struct{}{}; <-goOn; return nil }
	})
	asks(t, r, "none")
	<-asking // the list is made by now
	late := f.add("late", "shop", "cart-0", "web")
	asks(t, r, late.ID)
	close(goOn)
	finds(t, r, late)
}

func TestManyNewContainersAreFewQuestions(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	begun := time.Now()
	for i := 0; time.Since(begun) < 2*minRest; i++ {
		asks(t, r, fmt.Sprint(i))
		time.Sleep(time.Millisecond)
	}
	most := 2 + int(time.Since(begun)/minRest)
	if got := f.asked(); got < 2 || got > most {
		t.Errorf("asked %d times in %v, want from 2 to %d", got, time.Since(begun), most)
	}
}

// All calls return while the runtime hangs; and how much is asked for meanwhile does not
// matter.
func TestARuntimeThatHangsHoldsNothingUp(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	known := f.add("known", "shop", "cart-0", "web")
	r := f.open()
	hanging := make(chan struct{})
	f.set(func() {
		f.before = func(ctx context.Context) error {
			select {
			case hanging <- struct{}{}:
			default:
			}
			<-ctx.Done()
			return ctx.Err()
		}
	})
	asks(t, r, "unknown")
	<-hanging
	for i := range 10 * maxWanted {
		asks(t, r, fmt.Sprint(i))
	}
	knows(t, r, known)
	if len(r.wanted) > maxWanted {
		t.Errorf("%d ids are kept, want at most %d", len(r.wanted), maxWanted)
	}
	if r.Settled() {
		t.Error("it is settled, want it not to be: nothing was answered")
	}
	await(t, "an error", func() bool { _, err := r.Found(); return err != nil })
	f.set(func() { f.before = nil })
	unknown := f.add("unknown", "shop", "cart-1", "web")
	finds(t, r, unknown)
	if _, err := r.Found(); err != nil {
		t.Errorf("it answers again: got error %v, want none", err)
	}
}

func TestCloseDoesNotWaitForARuntimeThatHangs(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r, err := Open(context.Background(), f.path)
	check(t, err)
	hanging, released := make(chan struct{}), make(chan struct{})
	f.set(func() {
		f.before = func(context.Context) error { close(hanging); <-released; return nil }
	})
	asks(t, r, "unknown")
	<-hanging
	r.Close()
	close(released)
}

// What was not found has to be asked for again, when there is place.
func TestIdsThatAreNotFoundMakePlace(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	for i := range maxWanted {
		asks(t, r, fmt.Sprint(i))
	}
	settles(t, r)
	late := f.add("late", "shop", "cart-0", "web")
	asks(t, r, late.ID)
	finds(t, r, late)
}

func TestARuntimeThatFailsIsAskedAgain(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	f.set(func() { f.before = func(context.Context) error { return errors.New("no space left") } })
	c := f.add("a", "shop", "cart-0", "web")
	asks(t, r, c.ID)
	await(t, "its error", func() bool {
		_, err := r.Found()
		return err != nil && strings.Contains(err.Error(), "no space left")
	})
	f.set(func() { f.before = nil })
	finds(t, r, c)
}

func TestARuntimeThatIsRestartedIsAskedAgain(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	old := f.add("old", "shop", "cart-0", "web")
	r := f.open()
	f.stop()
	knows(t, r, old)
	c := f.add("new", "shop", "cart-1", "web")
	asks(t, r, c.ID)
	await(t, "an error", func() bool { _, err := r.Found(); return err != nil })
	f.start()
	finds(t, r, c)
	knows(t, r, old)
}

// With what kubelet adds to each, that is more than gRPC takes by default.
func TestTenThousandContainersAreKnown(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var want []events.Container
	for i := range 10_000 {
		want = append(want, f.add(fmt.Sprintf("%064x", i), "shop", fmt.Sprintf("cart-%d", i), "web"))
		f.containers[i].Annotations = map[string]string{"a": strings.Repeat("x", 600)}
	}
	r := f.open()
	for _, c := range want {
		knows(t, r, c)
	}
}

// What is more than kubelet would take is not taken either.
func TestAnAnswerThatIsTooLongIsAnError(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	r := f.open()
	f.add("a", "shop", "cart-0", "web")
	f.set(func() { f.containers[0].Annotations = map[string]string{"a": strings.Repeat("x", maxAnswer)} })
	asks(t, r, "a")
	await(t, "an error", func() bool {
		_, err := r.Found()
		return err != nil && strings.Contains(err.Error(), "larger than max")
	})
}

func TestWhatIsNoRuntimeIsRefusedWithTheMend(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "cri")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	// serves makes a socket where each connection is given to handle.
	serves := func(name string, handle func(net.Conn)) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		check(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go handle(c)
			}
		}()
		return path
	}
	file := filepath.Join(dir, "file")
	check(t, os.WriteFile(file, nil, 0o600))
	other, err := net.Listen("unix", filepath.Join(dir, "other"))
	check(t, err)
	server := grpc.NewServer() // as containerd's is without its CRI plugin
	go func() { _ = server.Serve(other) }()
	defer server.Stop()
	over := make(chan struct{})
	defer close(over)
	for _, tt := range []struct {
		name, path string
		want       []string
	}{
		{"nothing", filepath.Join(dir, "none"), []string{"no such file", "give the socket of a running container runtime"}},
		{"a file", file, []string{"connection refused", "give the socket of a running container runtime"}},
		{"a path that is too long for a socket", "/" + strings.Repeat("x", 200), []string{"invalid argument", "give the socket"}},
		{"another service", other.Addr().String(), []string{"unknown service runtime.v1.RuntimeService", "disabled_plugins"}},
		{"garbage", serves("garbage", func(c net.Conn) {
			_, _ = c.Write([]byte("220 mail.example.com ESMTP\r\n"))
			time.Sleep(time.Second)
			c.Close()
		}), []string{"see whether it is the CRI socket", "crictl --runtime-endpoint unix://" + dir + "/garbage ps"}},
		{"one that hangs up", serves("closes", func(c net.Conn) { c.Close() }), []string{"see whether it is the CRI socket"}},
		{"silence", serves("silent", func(c net.Conn) { <-over; c.Close() }), []string{"see whether the runtime hangs"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			r, err := Open(ctx, tt.path)
			if err == nil {
				r.Close()
				t.Fatal("got no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %q, want %q in it", err, want)
				}
			}
		})
	}
}

func TestAnEndpointIsThePathOfASocket(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///run/containerd/containerd.sock": "/run/containerd/containerd.sock",
		"/run/crio/crio.sock":                    "/run/crio/crio.sock",
		"unix:///run/a%20b?c#d":                  "/run/a%20b?c#d",
	} {
		if got, err := Path(in); err != nil || got != want {
			t.Errorf("%s: got %q, error %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "unix://", "unix://run/containerd.sock", "containerd.sock", "tcp://127.0.0.1:1", "npipe:////./pipe/x", "unix:/run/x"} {
		if got, err := Path(in); err == nil {
			t.Errorf("%q: got %q, want an error", in, got)
		}
	}
}

// A path may have what is special in a URL.
func TestAnyPathCanBeAsked(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.stop()
	f.path += " %41?b#c"
	f.start()
	f.open()
}
