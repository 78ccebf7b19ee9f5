// Package tcptrace holds the directive that builds the kernel side. The
// generated Go and object files are committed: building tcptrace needs neither
// clang nor bpf2go, and `make generate-check` proves that they belong to the
// sources in bpf/.
package tcptrace

// One little-endian object serves amd64 and arm64: what differs between them
// is relocated when it is loaded. The CPU version v3 (32-bit jumps, atomics) is
// what every kernel with a BPF ring buffer has.
//go:generate env GOPACKAGE=probe go tool bpf2go -output-dir internal/probe -cc clang-19 -strip llvm-strip-19 -target bpfel -type transition -type event -type accept -type socket_row -type socket_rows -type process -type timewait -cflags "-O2 -Wall -Werror -mcpu=v3" tcptrace bpf/tcptrace.bpf.c -- -I third_party/libbpf
