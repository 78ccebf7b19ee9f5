// Command crowd measures what many sockets in which nothing happens cost tcptrace: its start, its memory, its scans,
// and a snapshot beside ss. It prints a table with a column for each number of sockets that it is given.
//
// It needs root, iproute2, util-linux, and 5 KB of memory for each socket. They are in a network namespace of their own,
// and gone when it ends.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "crowd:", err)
		os.Exit(1)
	}
}

func run() error {
	runtime.LockOSThread() // what a thread has started is told when that ends, not the process
	var m meter
	flag.StringVar(&m.tcptrace, "tcptrace", "bin/tcptrace", "the `command` to measure")
	flag.IntVar(&m.rounds, "rounds", 5, "snapshots, each beside ss")
	flag.DurationVar(&m.idle, "idle", time.Minute, "how long it is watched while nothing happens")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: crowd [flags] SOCKETS...   (for example 100000 1000000, which takes a quarter of an hour)")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 3 && (flag.Arg(0) == "hold" || flag.Arg(0) == "part") {
		return child(flag.Args())
	}
	var columns []column
	for _, arg := range flag.Args() {
		sockets, err := strconv.Atoi(arg)
		if err != nil || sockets < 2 || sockets > mostSockets {
			return fmt.Errorf("%q sockets: give a number from 2 to %d", arg, mostSockets)
		}
		c, err := m.measure(sockets)
		if err != nil {
			return err
		}
		columns = append(columns, c)
	}
	if len(columns) == 0 {
		flag.Usage()
		return fmt.Errorf("no number of sockets")
	}
	print(columns)
	return nil
}

// child is one of the processes that have the sockets.
func child(args []string) error {
	k, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if args[0] == "hold" {
		return hold(k, count)
	}
	return part(k, count)
}

// A column is what was measured with so many sockets: name and value, in the order of the table.
type column [][2]string

func (c *column) add(name, format string, args ...any) {
	*c = append(*c, [2]string{name, fmt.Sprintf(format, args...)})
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, (*c)[len(*c)-1][1]) // the table comes minutes later
}

func print(columns []column) {
	for row := range columns[0] {
		cells := []string{columns[0][row][0]}
		for _, c := range columns {
			cells = append(cells, c[row][1])
		}
		fmt.Printf("| %s |\n", strings.Join(cells, " | "))
		if row == 0 {
			fmt.Printf("|%s\n", strings.Repeat("---|", len(cells)))
		}
	}
}
