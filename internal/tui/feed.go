// Package tui is the full-screen view of a run: what `tcptrace top` shows. It draws what it is
// given, and knows neither the kernel nor the tracker: a Feed lies between them, where neither
// side ever waits for the other.
package tui

import (
	"sync/atomic"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

// A Frame is what there is to be drawn. Nothing changes it once it is published.
type Frame struct {
	View      *aggregate.View
	Wall      int64               // what to add to the kernel's clock to get Unix time, in ns
	PerSecond float64             // transitions
	Lost      uint64              // transitions that never came
	Past      []aggregate.Finding // about processes that have exited, the newest first
	Note      string              // the last line of the log
	Replay    string              // of this file; "": it is live
	Played    bool                // all of it
}

// A Feed carries frames to the screen, and what it wants to see the other way.
type Feed struct {
	frame atomic.Pointer[Frame]
	query atomic.Pointer[aggregate.Query]
	news  chan struct{}
	asked chan struct{}
}

// NewFeed returns a Feed without a frame.
func NewFeed() *Feed {
	f := &Feed{news: make(chan struct{}, 1), asked: make(chan struct{}, 1)}
	f.query.Store(&aggregate.Query{Destinations: aggregate.ByTimeWait, Connections: aggregate.ByAge})
	return f
}

// Publish shows a frame from now on.
func (f *Feed) Publish(frame *Frame) {
	f.frame.Store(frame)
	wake(f.news)
}

// Query is what the screen wants to see.
func (f *Feed) Query() *aggregate.Query { return f.query.Load() }

// Asked receives when Query has become another.
func (f *Feed) Asked() <-chan struct{} { return f.asked }

func (f *Feed) ask(q aggregate.Query) {
	f.query.Store(&q)
	wake(f.asked)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has been woken, and will look
	}
}
