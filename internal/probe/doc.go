// Package probe owns everything that tcptrace has in the kernel: it loads and
// attaches the programs of bpf/, reads the ring buffer, runs the iterators, and
// gives all of it back. No other package knows of BPF.
//
// What it hands out are raw records (pkg/events decodes them). A facility that
// the kernel refuses is left out, and Probe.Variants says so; only without the
// transitions themselves is there nothing to do.
package probe
