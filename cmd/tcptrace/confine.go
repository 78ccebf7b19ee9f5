package main

import (
	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/privilege"
)

// confine gives up the privileges that nothing needs from here on: the programs are
// attached, and every file is open. It says what those cost that were not there, and
// returns them.
func (r *runner) confine() (missing []privilege.Capability) {
	missing = privilege.Missing()
	for _, c := range missing {
		if c.Name == "CAP_SYS_ADMIN" && r.kernel.IsHome(r.cfg.filter.Netns) {
			continue // no other network namespace is asked about
		}
		r.log.Warn("without " + c.Name + ": " + c.Without)
	}
	if err := privilege.Drop(); err != nil {
		r.log.Warn("keeps its capabilities", zap.Error(err))
	}
	return missing
}
