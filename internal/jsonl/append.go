package jsonl

import (
	"math"
	"math/bits"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// What strconv, time and netip would append costs twice as much as all the rest of a record.

// Tables of what is written over and over.
var (
	pairs  [100][2]byte // the two digits of a number
	octets [256]octet   // of an IPv4 address
	plain  [256]bool    // bytes that stand for themselves in a JSON string
	powers [20]uint64   // of ten, but 0 for the first: 0 has a digit too
)

// octet is a number and a dot.
type octet struct {
	text [4]byte
	n    uint8 // bytes of text
}

func init() {
	for n := range pairs {
		pairs[n] = [2]byte{'0' + byte(n/10), '0' + byte(n%10)}
	}
	for n := range octets {
		o := &octets[n]
		o.n = uint8(copy(o.text[:], strconv.Itoa(n)+"."))
	}
	for c := range plain {
		plain[c] = c >= 0x20 && c < 0x7f && c != '"' && c != '\\'
	}
	for i, p := 1, uint64(10); i < len(powers); i, p = i+1, p*10 {
		powers[i] = p
	}
}

// appendUint appends n in decimal.
func appendUint(b []byte, n uint64) []byte {
	digits := bits.Len64(n) * 1233 >> 12 // log10(2) is 1233/4096: right, or one too few
	if n >= powers[digits] {
		digits++
	}
	end := len(b) + digits
	b = slices.Grow(b, digits)[:end]
	for ; n > math.MaxUint32; n /= 100 {
		end -= 2
		*(*[2]byte)(b[end:]) = pairs[n%100]
	}
	m := uint32(n) // is divided faster
	for ; m >= 100; m /= 100 {
		end -= 2
		*(*[2]byte)(b[end:]) = pairs[m%100]
	}
	if m >= 10 {
		*(*[2]byte)(b[end-2:]) = pairs[m]
	} else {
		b[end-1] = '0' + byte(m)
	}
	return b
}

// appendHex appends n in hexadecimal; 0 as nothing.
func appendHex(b []byte, n uint64) []byte {
	end := len(b) + (bits.Len64(n)+3)/4
	b = slices.Grow(b, 16)[:end]
	for ; n > 0; n >>= 4 {
		end--
		b[end] = hex[n&15]
	}
	return b
}

// appendMs appends d in milliseconds with microsecond digits, cut, or null.
func appendMs(b []byte, d time.Duration) []byte {
	if d < 0 {
		return append(b, "null"...)
	}
	us := uint64(d / time.Microsecond)
	b = appendUint(b, us/1000)
	last := pairs[us%100]
	return append(b, '.', '0'+byte(us/100%10), last[0], last[1])
}

func (e *Encoder) appendTime(b []byte, ktime uint64) []byte {
	ns := int64(ktime) + e.Wall
	sec, frac := ns/int64(time.Second), ns%int64(time.Second)
	if frac < 0 { // before 1970
		sec, frac = sec-1, frac+int64(time.Second)
	}
	if sec != e.second || e.prefix[0] == 0 {
		e.second = sec
		time.Unix(sec, 0).UTC().AppendFormat(e.prefix[:0], `"2006-01-02T15:04:05.`)
	}
	b = append(b, e.prefix[:]...)
	b = append(b, `000000000Z"`...)
	digits := b[len(b)-11:]
	digits[0] = '0' + byte(frac/100_000_000)
	for i, n := 7, uint32(frac%100_000_000); n > 0; i, n = i-2, n/100 {
		*(*[2]byte)(digits[i:]) = pairs[n%100]
	}
	return b
}

// appendIP appends a as netip.Addr does.
func appendIP(b []byte, a *events.Addr) []byte {
	if !a.Is4() {
		return a.Netip().AppendTo(b)
	}
	for _, n := range a[12:] {
		o := &octets[n]
		b = append(b, o.text[:]...)
		b = b[:len(b)-len(o.text)+int(o.n)]
	}
	return b[:len(b)-1] // the last dot
}

// appendName appends one of the product's own names, which need no escapes, or
// null for none.
func appendName(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

const hex = "0123456789abcdef"

// appendString appends any bytes as a JSON string. A byte that is not part of
// valid UTF-8 becomes U+FFFD, as encoding/json has it: JSON can carry text only.
// Control bytes are escaped, C1 and DEL too, so that no command name can move a
// terminal's cursor; U+2028 and U+2029 are line ends to some readers.
func appendString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	for {
		n := 0
		for n < len(s) && plain[s[n]] {
			n++
		}
		b = append(b, s[:n]...)
		if n == len(s) {
			return append(b, '"')
		}
		s = s[n:]
		r, size := utf8.DecodeRune([]byte(s[:min(len(s), utf8.UTFMax)]))
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == utf8.RuneError && size == 1:
			b = append(b, `\ufffd`...)
		case r < 0xa0 || r == 0x2028 || r == 0x2029:
			b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
}
