package main

import (
	"cmp"
	"fmt"
	"runtime/debug"
)

// build is what Go has stamped into this binary: the module's version (git's tag,
// or the commit's time and hash; with +dirty if there were changes beside it), and
// the commit. Where it was built without a stamp, time is empty.
type build struct {
	version, commit, time string
	platform              string // "go1.26.8 linux/amd64"
}

func thisBuild() build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return build{version: "unknown", commit: "unknown", platform: "unknown"}
	}
	set := map[string]string{}
	for _, s := range info.Settings {
		set[s.Key] = s.Value
	}
	return build{
		version: cmp.Or(info.Main.Version, "unknown"), commit: cmp.Or(set["vcs.revision"], "unknown"), time: set["vcs.time"],
		platform: fmt.Sprintf("%s %s/%s", info.GoVersion, set["GOOS"], set["GOARCH"]),
	}
}

func (b build) String() string {
	return fmt.Sprintf("%s (commit %s, %s)", b.version, b.commit, b.platform)
}
