// Package aggregate turns events into connections: who owns each, how long it
// spent in every state, how it began and ended.
//
// It holds no clock. All time is the kernel's (CLOCK_BOOTTIME, ns) and comes in
// with the events, so that a recording gives the same records as the run it was
// made from. What it does not know it reports as unknown; what it was not told
// (a lost event) it detects, counts, and marks on the connection.
package aggregate
