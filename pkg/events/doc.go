// Package events is the vocabulary that the kernel side and user space share:
// the TCP states, and the records that bpf/tcptrace.h lays out.
//
// It knows bytes and names, not meaning: what an event says about a connection
// is pkg/aggregate's business. It depends on the standard library alone.
package events
