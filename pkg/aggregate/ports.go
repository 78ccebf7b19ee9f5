package aggregate

func (t *Tracker) countPort(i uint32) {}
func (t *Tracker) uncountPort(i uint32) {}
