package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// patience bounds what a client waits for. The servers' time-outs are well below.
const patience = 20 * time.Second

// pace gives leave to open a connection, so often as flag -rate says.
var pace = make(chan struct{})

// dial opens a connection; hangUp or a close of it must follow.
func dial(addr string) (*net.TCPConn, error) {
	<-pace
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(patience))
}

func get(path, connection string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: test\r\nConnection: " + connection + "\r\n\r\n"
}

// answer reads one answer, and checks that it is whole.
func answer(r *bufio.Reader) error {
	a, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", a.Status)
	}
	n, err := io.Copy(io.Discard, a.Body)
	if err == nil && n != a.ContentLength {
		err = fmt.Errorf("%d bytes, want %d", n, a.ContentLength)
	}
	return err
}

// end reads what is left, up to the end of the stream.
func end(r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d bytes after the answer", n)
	}
	return err
}

// hasHungUp reports whether err is what a server that has closed the connection,
// or is about to, makes of the next request.
func hasHungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// talk is what most clients do: connect, send, take, and close.
func talk(addr, send string, take func(c *net.TCPConn) error) error {
	c, err := dial(addr)
	if err != nil {
		return err
	}
	_, err = io.WriteString(c, send)
	if err == nil {
		err = take(c)
	}
	return errors.Join(err, c.Close())
}

func keepAlive(addr string) error {
	return talk(addr, "", func(c *net.TCPConn) error {
		r := bufio.NewReader(c)
		for n := range 100 {
			_, err := io.WriteString(c, get("/", "keep-alive"))
			if err == nil {
				err = answer(r)
			}
			// A server that is told to reload closes what is between two requests.
			if n > 0 && hasHungUp(err) {
				return nil
			}
			if err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
}

func serverCloses(addr, path string) error {
	return talk(addr, get(path, "close"), func(c *net.TCPConn) error {
		r := bufio.NewReader(c)
		if err := answer(r); err != nil {
			return err
		}
		return end(r)
	})
}

func clientCloses(addr string) error {
	return talk(addr, get("/", "keep-alive"), func(c *net.TCPConn) error { return answer(bufio.NewReader(c)) })
}

func halfCloses(addr, path string) error {
	return talk(addr, get(path, "close"), func(c *net.TCPConn) error {
		if err := c.CloseWrite(); err != nil {
			return err
		}
		r := bufio.NewReader(c)
		if err := answer(r); err != nil {
			return err
		}
		return end(r)
	})
}

// resets hangs up without a FIN, within the answer if send asks for one.
func resets(addr, send string) error {
	return talk(addr, send, func(c *net.TCPConn) error {
		if strings.HasSuffix(send, "\r\n\r\n") {
			if _, err := io.ReadFull(c, make([]byte, 4096)); err != nil {
				return err
			}
		}
		return c.SetLinger(0)
	})
}

// hangsUp closes with much of the answer still to come, which the kernel says
// with a FIN or with a reset.
func hangsUp(addr, path string) error {
	return talk(addr, get(path, "close"), func(c *net.TCPConn) error {
		_, err := io.ReadFull(c, make([]byte, 4096))
		return err
	})
}

// hangsUpBetween closes when it has read all that has come, so with a FIN, while
// the server waits until it may send on.
func hangsUpBetween(addr string) error {
	return talk(addr, get("/slow", "close"), func(c *net.TCPConn) error {
		buf := make([]byte, 64<<10)
		for {
			if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				return err
			}
			_, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

// idles sends nothing, or nothing more, and closes when the server has.
func idles(addr, send string) error {
	return talk(addr, send, func(c *net.TCPConn) error {
		_, err := io.Copy(io.Discard, c) // haproxy says 408 to the silent
		return err
	})
}

const pings = 100

// pongs reads the answers to that many PINGs.
func pongs(r io.Reader) error {
	want := strings.Repeat("+PONG\r\n", pings)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		return err
	}
	if !bytes.Equal(got, []byte(want)) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

func pipeline() error {
	return talk(*redis, "", func(c *net.TCPConn) error {
		for range 10 {
			if _, err := io.WriteString(c, strings.Repeat("PING\r\n", pings)); err != nil {
				return err
			}
			if err := pongs(c); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
}

func quit() error {
	return talk(*redis, strings.Repeat("PING\r\n", pings)+"QUIT\r\n", func(c *net.TCPConn) error {
		if err := pongs(c); err != nil {
			return err
		}
		ok := make([]byte, len("+OK\r\n"))
		if _, err := io.ReadFull(c, ok); err != nil {
			return err
		}
		return end(c)
	})
}

func halfClosedPipeline() error {
	return talk(*redis, strings.Repeat("PING\r\n", pings), func(c *net.TCPConn) error {
		if err := c.CloseWrite(); err != nil {
			return err
		}
		if err := pongs(c); err != nil {
			return err
		}
		return end(c)
	})
}

// beKilled is the whole life of a client that ends with connections in all
// conditions: answered, in the middle of the answer, and in the middle of a
// command. It returns only if something went wrong before.
func beKilled() error {
	for _, send := range []string{"PING\r\n", strings.Repeat("PING\r\n", 50*pings), "*2\r\n$4\r\nECHO\r\n$100\r\nabc"} {
		c, err := net.DialTimeout("tcp", *redis, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, send); err != nil {
			return err
		}
	}
	time.Sleep(100 * time.Millisecond)
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
