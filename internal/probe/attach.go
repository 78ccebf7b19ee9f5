package probe

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// errForced is why a way is not taken that the kernel was not asked for.
var errForced = errors.New("not wanted (--probe)")

// allows reports whether a way may be tried.
func (p *Probe) allows(facility, way string) bool {
	only, forced := p.forced[facility]
	return !forced || only == way
}

// checkForced says so if what was to be used is not.
func (p *Probe) checkForced() error {
	for facility, way := range p.forced {
		for _, v := range p.variants {
			if v.Facility != facility || way == None || v.Name == way {
				continue
			}
			if v.Err == nil {
				return errors.New("--probe " + facility + "=" + way + ": here it can only be " + v.Name)
			}
			// In words only: it is no lack of privilege that stops tcptrace.
			return errors.New("--probe " + facility + "=" + way + ": the kernel refuses it: " + v.Err.Error())
		}
	}
	return nil
}

// way is one way to provide a facility, by one program.
type way struct{ name, program string }

// variant is one way to provide a facility: by programs that are all needed, and loaded
// together. Those in load only are not attached.
type variant struct {
	name       string
	attach     []string
	load       []string
	trampoline bool                         // it hooks functions
	prepare    func() error                 // what must be done before, and may fail; may be nil
	prove      func(*ebpf.Collection) error // says that it is attached in vain; may be nil
}

// ftraceDisabled says that the hooks of functions are attached in vain.
func ftraceDisabled() error {
	b, err := os.ReadFile("/proc/sys/kernel/ftrace_enabled")
	if err == nil && bytes.Equal(bytes.TrimSpace(b), []byte("0")) {
		return errors.New("kernel.ftrace_enabled is 0")
	}
	return nil // or a kernel without the sysctl
}

// trace attaches the first variant that the kernel takes, if it takes one.
func (p *Probe) trace(l *loader, facility string, ways ...variant) {
	v := Variant{Facility: facility}
	for _, w := range ways {
		if !p.allows(facility, w.name) {
			v.Err = errors.Join(v.Err, fmt.Errorf("%s: %w", w.name, errForced))
			continue
		}
		var err error
		if w.trampoline {
			err = p.refusesTrampolines
		}
		if err == nil && w.prepare != nil {
			err = w.prepare()
		}
		if err == nil {
			err = p.loadAndAttach(l, w)
		}
		if err == nil {
			v.Name = w.name
			break
		}
		if w.trampoline && errors.Is(err, unix.EPERM) {
			p.refusesTrampolines = err // it is one policy for all of them
		}
		v.Err = errors.Join(v.Err, fmt.Errorf("%s: %w", w.name, err))
	}
	p.variants = append(p.variants, v)
}

// loadAndAttach attaches all of the programs or none.
func (p *Probe) loadAndAttach(l *loader, w variant) error {
	coll, err := l.load(slices.Concat(w.attach, w.load)...)
	if err != nil {
		return err
	}
	attached := len(p.links)
	for _, name := range w.attach {
		if err := p.attach(l, coll, name); err != nil {
			p.detachFrom(attached)
			coll.Close()
			return err
		}
	}
	if w.prove != nil {
		if err := w.prove(coll); err != nil {
			p.detachFrom(attached)
			coll.Close()
			return err
		}
	}
	p.others = append(p.others, coll)
	return nil
}

// detachFrom detaches what was attached since there were so many.
func (p *Probe) detachFrom(attached int) {
	for _, lnk := range p.links[attached:] {
		_ = lnk.Close()
	}
	p.links = p.links[:attached]
}

func (p *Probe) attach(l *loader, coll *ebpf.Collection, name string) error {
	var lnk link.Link
	var err error
	if prog := coll.Programs[name]; prog.Type() == ebpf.RawTracepoint {
		at := l.spec.Programs[name].AttachTo
		lnk, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: at, Program: prog})
	} else {
		lnk, err = link.AttachTracing(link.TracingOptions{Program: prog})
	}
	if err == nil {
		p.links = append(p.links, lnk)
	}
	return err
}

// iterator attaches the first that the kernel takes; nil if it takes none.
func (p *Probe) iterator(l *loader, facility string, ways ...way) *link.Iter {
	v := Variant{Facility: facility}
	var it *link.Iter
	for _, w := range ways {
		var coll *ebpf.Collection
		err := errForced
		if p.allows(facility, w.name) {
			coll, err = l.load(w.program)
		}
		if err == nil {
			if it, err = link.AttachIter(link.IterOptions{Program: coll.Programs[w.program]}); err == nil {
				p.others = append(p.others, coll)
				v.Name = w.name
				break
			}
			coll.Close()
		}
		v.Err = errors.Join(v.Err, fmt.Errorf("%s: %w", w.name, err))
	}
	p.variants = append(p.variants, v)
	return it
}

// Has reports whether a facility is provided at all.
func (p *Probe) Has(facility string) bool {
	return slices.ContainsFunc(p.variants, func(v Variant) bool { return v.Facility == facility && v.Name != "" })
}
