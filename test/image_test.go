package livetest

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// An image is what deploy/Dockerfile makes of the command under test.
type image struct {
	root       string // the unpacked file system
	entrypoint []string
	user       string
}

// builtImage is built by buildah, offline, when the first test asks for it;
// TestMain removes it with the command under test.
var builtImage = sync.OnceValues(func() (image, error) {
	dir := filepath.Join(buildDir, "image")
	img := image{root: filepath.Join(dir, "root")}
	context := filepath.Join(dir, "context")
	if err := os.MkdirAll(filepath.Join(context, "dist"), 0o755); err != nil {
		return img, err
	}
	binary := filepath.Join(context, "dist", "tcptrace-linux-"+runtime.GOARCH)
	for _, cp := range [][]string{{"../LICENSE", "../NOTICE", "../LICENSES", context}, {tcptraceBin, binary}} {
		if out, err := exec.Command("cp", append([]string{"-r"}, cp...)...).CombinedOutput(); err != nil {
			return img, fmt.Errorf("cp %v: %w\n%s", cp, err, out)
		}
	}
	buildah := func(args ...string) ([]byte, error) {
		// vfs works wherever a directory can be made, also on an overlay.
		storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run")}
		var stderr strings.Builder
		cmd := exec.Command("buildah", append(storage, args...)...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("buildah %v: %w\n%s", args, err, stderr.String())
		}
		return out, err
	}
	if _, err := buildah("build", "--isolation", "chroot", "--platform", "linux/"+runtime.GOARCH, "--file", "../deploy/Dockerfile",
		"--tag", "tcptrace", "--output", "type=local,dest="+img.root, context); err != nil {
		return img, err
	}
	out, err := buildah("inspect", "--type", "image", "tcptrace")
	if err != nil {
		return img, err
	}
	var inspected struct {
		OCIv1 struct {
			Config struct {
				Entrypoint []string
				User       string
			}
		}
	}
	err = json.Unmarshal(out, &inspected)
	img.entrypoint, img.user = inspected.OCIv1.Config.Entrypoint, inspected.OCIv1.Config.User
	return img, err
})

func theImage(t *testing.T) image {
	t.Helper()
	img, err := builtImage()
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// The image holds one program, and what its licences ask for.
func TestTheImageIsOneStaticBinary(t *testing.T) {
	live(t)
	img := theImage(t)
	if img.user != "0:0" {
		t.Errorf("user %q, want 0:0: who runs as another has no capabilities", img.user)
	}
	var programs []string
	err := filepath.WalkDir(img.root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode()&0o111 != 0 {
			programs = append(programs, strings.TrimPrefix(path, img.root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(programs, img.entrypoint) {
		t.Errorf("programs %v, want the entry point alone, %v", programs, img.entrypoint)
	}
	binary, err := elf.Open(img.root + img.entrypoint[0])
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	if slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("it asks for a dynamic linker, want a static one")
	}
}
