package jsonl

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// What is written by hand is what the standard library writes, byte for byte.
func TestNumbersTimesAndAddressesAreWrittenAsByTheStandardLibrary(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	e := Encoder{}
	for range 200_000 {
		n := rnd.Uint64() >> rnd.IntN(64) // as many of each length
		ten := uint64(math.Pow10(rnd.IntN(20)))
		for _, n := range []uint64{n, ten - 1, ten, math.MaxUint32, math.MaxUint32 + 1, math.MaxUint64} {
			same(t, string(appendUint(nil, n)), strconv.FormatUint(n, 10))
			if n > 0 {
				same(t, string(appendHex(nil, n)), strconv.FormatUint(n, 16))
			}
			d := time.Duration(n >> 1)
			same(t, string(appendMs(nil, d)), fmt.Sprintf("%d.%03d", d.Milliseconds(), d.Microseconds()%1000))
		}
		a := events.Addr{10: 0xff, 11: 0xff}
		if n%3 == 0 {
			a = events.Addr{0: 0xfe, 1: 0x80, 15: byte(n)}
		}
		for i := 12; i < 16; i++ {
			a[i] = byte(rnd.Uint32() >> rnd.IntN(32))
		}
		same(t, string(appendIP(nil, &a)), a.Netip().String())

		e.Wall = int64(n)
		if n%2 == 0 {
			e.Wall = -e.Wall // before 1970
		}
		for _, ktime := range []uint64{0, 1, uint64(rnd.Uint32())} { // most of them in the same second
			same(t, string(e.appendTime(nil, ktime)),
				time.Unix(0, int64(ktime)+e.Wall).UTC().Format(`"2006-01-02T15:04:05.000000000Z"`))
		}
	}
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

// slowly is a transition as fmt and encoding/json write it.
func slowly(tr *aggregate.Transition, wall int64) string {
	quote := func(s string) string {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	known := func(known bool, s string) string {
		if !known {
			return "null"
		}
		return s
	}
	family := "ipv6"
	if tr.Is4() {
		family = "ipv4"
	}
	source := "tracepoint"
	if tr.Mini {
		source = "timewait"
	}
	owned := tr.Owner.Pid != 0
	s := fmt.Sprintf(`{"type":"transition","time":%q,"cookie":%s,"netns":%d,"family":%q,"laddr":%q,"lport":%s,"raddr":%s,"rport":%s,"pid":%s,"comm":%s,"owner_source":%s,"oldstate":%q,"newstate":%q,"dwell_ms":%s,"source":%q`,
		time.Unix(0, wall+int64(tr.Ktime)).UTC().Format("2006-01-02T15:04:05.000000000Z"),
		known(tr.Cookie != 0, fmt.Sprintf(`"%x"`, tr.Cookie)), tr.Netns, family,
		tr.Laddr.Netip(), known(tr.Lport != 0, fmt.Sprint(tr.Lport)),
		known(!tr.Raddr.IsUnspecified(), quote(tr.Raddr.Netip().String())), known(tr.Rport != 0, fmt.Sprint(tr.Rport)),
		known(owned, fmt.Sprint(tr.Owner.Pid)), known(owned, quote(string(tr.Owner.Comm.Bytes()))), known(owned, quote(tr.Owner.Source.String())),
		tr.Old, tr.New, known(tr.Dwell >= 0, fmt.Sprintf("%d.%03d", tr.Dwell.Milliseconds(), tr.Dwell.Microseconds()%1000)), source)
	if tr.Container.ID != "" {
		s += fmt.Sprintf(`,"container":%q`, tr.Container.ID)
	}
	if tr.Gap {
		s += `,"gap":true`
	}
	if tr.Unprinted > 0 {
		s += fmt.Sprintf(`,"unprinted":%d`, tr.Unprinted)
	}
	return s + "}\n"
}

// One encoder writes sockets by turns, of which it may remember something.
func TestATransitionIsWrittenAsByTheStandardLibrary(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	ip := func() events.Addr {
		switch rnd.IntN(4) {
		case 0:
			return events.Addr{}
		case 1:
			return events.Addr{0: 0x20, 1: 1, 15: byte(rnd.IntN(3))}
		}
		return events.Addr{10: 0xff, 11: 0xff, 12: byte(rnd.IntN(256)), 15: byte(rnd.IntN(256))}
	}
	maybe := func(n int) int { return rnd.IntN(2) * rnd.IntN(n) }
	e := Encoder{Wall: wall}
	var ends [8]aggregate.Ends
	var got []byte
	for n := range 100_000 {
		s := &ends[rnd.IntN(len(ends))]
		switch rnd.IntN(20) { // else it is as it was
		case 0:
			*s = aggregate.Ends{
				Cookie: uint64(maybe(1 << 20)), Netns: 4026531840 + uint32(rnd.IntN(2)),
				Lport: uint16(maybe(1 << 16)), Rport: uint16(maybe(1 << 16)), Laddr: ip(), Raddr: ip(),
			}
		case 1:
			s.Owner = aggregate.Owner{
				Pid: uint32(maybe(1 << 22)), Comm: events.MakeComm([]string{"nginx", "", `a "b" \c`, "\u00e9"}[rnd.IntN(4)]),
				Source: aggregate.Source(1 + rnd.IntN(int(aggregate.SourceListener))),
			}
		case 2:
			s.Lport++
		case 3:
			s.Netns++
		}
		tr := aggregate.Transition{
			Ends: *s, Ktime: uint64(n) * uint64(rnd.IntN(1<<20)),
			Old: events.State(1 + rnd.IntN(11)), New: events.State(1 + rnd.IntN(11)), Dwell: time.Duration(rnd.Int64()>>rnd.IntN(63)) - 1,
			Mini: rnd.IntN(2) == 0, Gap: rnd.IntN(9) == 0, Unprinted: uint32(maybe(100)),
		}
		if rnd.IntN(3) == 0 {
			tr.Container.ID = "abc123"
		}
		got = e.Transition(got[:0], &tr)
		same(t, string(got), slowly(&tr, wall))
	}
}
