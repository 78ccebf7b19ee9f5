package main

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/text"
)

// screen says what f is for lines that people read. Colour is for a terminal that knows it, and a
// user who has not turned it off for all programs (no-color.org).
func screen(f *os.File) text.Screen {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return text.Screen{}
	}
	term := os.Getenv("TERM")
	return text.Screen{Columns: int(size.Col), Color: os.Getenv("NO_COLOR") == "" && term != "" && term != "dumb"}
}
