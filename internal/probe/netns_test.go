package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// Who led to a network namespace may have exited, and another process have its PID, while others are in it still.
func TestANetworkNamespaceIsEnteredByWhoeverIsLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	left := exec.Command("sleep", "60")
	left.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = left.Process.Kill() })
	number, err := inode(fmt.Sprintf("/proc/%d/ns/net", left.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	home, err := openHome()
	if err != nil {
		t.Fatal(err)
	}
	p := Probe{home: home}
	entered := uint32(0)
	look := func() (err error) { entered, err = inode("/proc/thread-self/ns/net"); return err }
	for _, path := range []string{"", "/proc/" + strconv.Itoa(1<<30) + "/ns/net", "/proc/self/ns/net"} {
		entered, p.paths = 0, map[uint32]string{number: path}
		if err := p.within(number, look); err != nil || entered != number {
			t.Errorf("by %q: entered %d, error %v; want %d", path, entered, err, number)
		}
	}

	if err := left.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = left.Wait() // it was killed
	entered = 0
	if err := p.within(number, look); !errors.Is(err, errGone) || entered != 0 {
		t.Errorf("once nobody is left: entered %d, error %v; want %v", entered, err, errGone)
	}
	if err := p.within(home.inode, look); err != nil || entered != home.inode {
		t.Errorf("at home: entered %d, error %v; want %d", entered, err, home.inode)
	}
}
