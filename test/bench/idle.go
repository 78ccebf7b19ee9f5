package main

import "time"

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
