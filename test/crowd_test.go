package livetest

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// A benchmark that takes ten minutes is not run often: this keeps it from rotting.
func TestTheBenchmarkOfManySocketsMeasuresFew(t *testing.T) {
	live(t)
	bin, err := program(t.TempDir(), "crowd", "./crowd", "go", "build")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-tcptrace", tcptraceBin, "-rounds", "1", "-idle", "2s", "400")
	var log bytes.Buffer
	cmd.Stderr = &log
	table, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v; stderr:\n%s", err, log.String())
	}
	if want := "| in TIME_WAIT | 400 |\n"; !strings.Contains(string(table), want) {
		t.Errorf("got\n%s; want in it: %s", table, want)
	}
}
