package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A crowd of descriptors is shared out among processes, since each may have only so many.
const (
	crowdSize      = 100_000
	crowdProcesses = 10
)

// A pass is one look at all sockets and the processes that hold them.
type pass struct{ wall, cpu time.Duration }

// A pair is what is compared, one right after the other.
type pair struct{ snapshot, ss pass }

// compareSnapshots takes passes in turn over a crowd of established connections.
func compareSnapshots(rounds int) (pairs []pair, err error) {
	err = inNamespace(func() error {
		for range crowdProcesses {
			p, err := start(stormBin, "-hold", "10m", "-n", strconv.Itoa(crowdSize/2/crowdProcesses))
			if err != nil {
				return err
			}
			defer p.close()
			err = until("connections", func() (bool, error) {
				st, err := p.stdout.Stat()
				return st.Size() > 0, err
			})
			if err != nil {
				return err
			}
		}
		for round := range rounds {
			snapshot, err := look(tcptraceBin, "snapshot")
			if err != nil {
				return err
			}
			ss, err := look("ss", "-tanp")
			if err != nil {
				return err
			}
			fmt.Printf("%d/%d tcptrace snapshot %.2f s, ss -tanp %.2f s\n", round+1, rounds, snapshot.wall.Seconds(), ss.wall.Seconds())
			pairs = append(pairs, pair{snapshot, ss})
		}
		return nil
	})
	return pairs, err
}

func look(command ...string) (pass, error) {
	p, err := start(command...)
	if err != nil {
		return pass{}, err
	}
	defer p.close()
	err = p.wait()
	wall := time.Since(p.started)
	if err != nil {
		return pass{}, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	found := 0
	err = p.printed(func(line []byte) error {
		if bytes.Contains(line, []byte(ofTheStorm)) {
			found++
		}
		return nil
	})
	if err == nil && found != crowdSize {
		err = fmt.Errorf("%s: printed %d sockets, want %d", strings.Join(command, " "), found, crowdSize)
	}
	return pass{wall, p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()}, err
}

// measureIdle is the share of a core that tcptrace uses when nothing happens.
func measureIdle() (float64, error) {
	const long = 20 * time.Second
	t := tracer{command: []string{tcptraceBin}}
	p, err := start(t.command...)
	if err != nil {
		return 0, err
	}
	defer p.close()
	if err := t.awaitStart(p); err != nil {
		return 0, err
	}
	before, err := p.settle()
	if err != nil {
		return 0, err
	}
	time.Sleep(long)
	after, err := p.cpu()
	if err != nil {
		return 0, err
	}
	return (after - before).Seconds() / long.Seconds(), p.interrupt()
}
