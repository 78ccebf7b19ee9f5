package events

import "time"

// Thresholds say from when on something is a finding; and what else of its command line
// a recording has to tell.
type Thresholds struct {
	CloseWaitAfter time.Duration // in CLOSE_WAIT, or dead with its descriptor open
	FinWait2After  time.Duration // in FIN_WAIT2, and the peer does not close
	HalfOpenAfter  time.Duration // established and silent, and nothing would notice that the peer is gone
	ShortLived     uint32        // connections a second of one process to one destination
	PortsPercent   uint32        // of the ephemeral ports to one destination

	SummaryInterval time.Duration // no threshold: summaries are made so often; 0: none
}

// DefaultThresholds are silent on a healthy busy server.
//
// Web servers drain a connection that they have closed for up to 30 s (nginx,
// lingering_time), and the kernel ends an orphan in FIN_WAIT2 after 60 s
// (tcp_fin_timeout): 45 s lies between. Two hours are what keep-alive waits before its
// first probe (tcp_keepalive_time): whoever wants to notice a dead peer has asked for
// less. Fifty connections a second fill a quarter of the default ephemeral ports
// within a minute of TIME_WAIT; health checks and cron jobs stay far below.
var DefaultThresholds = Thresholds{
	CloseWaitAfter: time.Minute,
	FinWait2After:  45 * time.Second,
	HalfOpenAfter:  2 * time.Hour,
	ShortLived:     50,
	PortsPercent:   75,
}
