package events

// Books is what the kernel side has counted since tracing started.
type Books struct {
	Seen        uint64 // transitions of TCP sockets that the programs were run for
	Filtered    uint64 // of these, turned away by a filter
	RingFull    uint64 // of these, not handed over: no place in the ring buffer
	Skipped     uint64 // times that the kernel skipped the first program, which was running
	Rescued     uint64 // times that the second program found work that the first had not done
	RecordsLost uint64 // other records for which the ring buffer had no place
}
