package main

import (
	"errors"
	"strings"
)

// list is the value of a flag that takes several: separated by commas, or by line
// ends, as in --pid "$(pgrep nginx)". pflag's own takes "" for no list at all, and
// so would turn a filter off where a script's variable is not set; and it drops
// all lines but the first.
type list []string

var errEmpty = errors.New("it is empty")

// Set implements pflag.Value.
func (l *list) Set(s string) error {
	s = strings.Trim(s, "\n")
	if s == "" {
		return errEmpty
	}
	*l = append(*l, strings.Split(strings.ReplaceAll(s, "\n", ","), ",")...)
	return nil
}

func (l *list) String() string { return strings.Join(*l, ",") }

// Type implements pflag.Value.
func (*list) Type() string { return "list" }

// name is the value of a flag that is given with a value or not at all.
type name string

// Set implements pflag.Value.
func (n *name) Set(s string) error {
	if s == "" {
		return errEmpty
	}
	*n = name(s)
	return nil
}

func (n *name) String() string { return string(*n) }

// Type implements pflag.Value.
func (*name) Type() string { return "string" }
