package events

// Books is what the kernel side has counted since tracing started.
type Books struct {
	Seen        uint64 // transitions of TCP sockets that the programs were run for
	Filtered    uint64 // of these, turned away by a filter
	RingFull    uint64 // of these, not handed over: no place in the ring buffer
	Escaped     uint64 // transitions that neither program was run for, because both were running
	RecordsLost uint64 // other records for which the ring buffer had no place
}
