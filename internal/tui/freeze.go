package tui

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"golang.org/x/sys/unix"
)

// A frozen screen is at least so wide: addresses are not to be cut there.
const frozenWidth = 160

// frozenMsg says where the screen was written, or why it was not.
type frozenMsg struct{ note string }

// freeze writes what is shown to a file, with the rows that the screen has no room for.
func (m *model) freeze() tea.Cmd {
	at := m.now()
	c := canvas{w: max(m.w, frozenWidth), plain: true}
	c.put("tcptrace top, " + at.UTC().Format(time.RFC3339))
	frozen := *m // where there is room for all nothing is scrolled: the screen is to stay where it is
	frozen.draw(&c, 1<<20)
	content := strings.Join(c.lines, "\n") + "\n"
	return func() tea.Msg {
		path, err := write(at, content)
		if err != nil {
			return frozenMsg{"not written: " + err.Error()}
		}
		return frozenMsg{"written to " + path}
	}
}

// write makes a new file in the working directory, or where this may not be written in, as is so
// with another user's once root has given up its capabilities, in that for temporary files.
func write(at time.Time, content string) (path string, err error) {
	for _, dir := range []string{".", os.TempDir()} {
		if path, err = create(dir, at, content); err == nil || !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) {
			break
		}
	}
	return path, err
}

// create never writes to what is there: names are counted up.
func create(dir string, at time.Time, content string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	const tries = 100
	for n := range tries {
		name := at.UTC().Format("tcptrace-top-20060102-150405")
		if n > 0 {
			name += fmt.Sprintf("-%d", n+1)
		}
		path := filepath.Join(dir, name+".txt")
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = f.WriteString(content)
		return path, errors.Join(err, f.Close())
	}
	return "", fmt.Errorf("%s has %d of that second", dir, tries)
}
