// Package privilege makes a process give up what it does not need.
//
// Linux keeps capabilities for each thread, and a Go program has many threads by the time it runs. So
// the set is narrowed on one thread, and the program is started anew in its place, same process, same
// arguments, same descriptors: then every thread of it has the narrow set, and nothing can widen it.
package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// lastCap is the highest number that the kernel may know: a set has 64 bits.
const lastCap = 63

// Shed keeps of root's capabilities those in keep (CAP_… of x/sys), for this process and all it
// starts, and forbids them to gain any by setuid programs or file capabilities. If something has to be
// given up, it starts the program anew and does not return; call it before anything is opened or
// started. It returns nil when there is nothing to give up, as on that second start, and for others
// than root, who have no capabilities but may need setuid programs. Kinds: Denied (this process may not
// narrow its set, as in some containers; nothing has changed), Internal.
func Shed(keep ...uintptr) error {
	if os.Geteuid() != 0 {
		return nil
	}
	surplus, err := surplus(keep)
	if err != nil || !surplus {
		return err
	}
	runtime.LockOSThread() // what is narrowed is this thread; if it goes on, it must not serve others
	if err := narrow(keep); err != nil {
		return err // the goroutine stays on its thread, which may be narrowed in part
	}
	err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	return namespace.E(namespace.Internal, "start anew", os.Args[0], err)
}

// Start starts cmd with root's capabilities narrowed as Shed does, so that Shed finds nothing to do there:
// a second start costs some 10 ms. Where they cannot be narrowed, cmd is started as it is; Shed tells.
// Errors are those of cmd.Start.
func Start(cmd *exec.Cmd, keep ...uintptr) error {
	if surplus, err := surplus(keep); os.Geteuid() != 0 || err != nil || !surplus {
		return cmd.Start()
	}
	started := make(chan error)
	go startNarrowed(cmd, keep, started)
	return <-started
}

// startNarrowed narrows a thread, starts cmd on it, and lets the thread end. The first thread of a
// process cannot end, and is what others see of it: that one is left alone.
func startNarrowed(cmd *exec.Cmd, keep []uintptr, started chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		again := make(chan error)
		go startNarrowed(cmd, keep, again) // on another one, while this is held
		started <- <-again
		runtime.UnlockOSThread()
		return
	}
	_ = narrow(keep) // what is left, Shed gives up, or says that it cannot
	started <- cmd.Start()
}

// surplus reports whether this thread has more than keep, or could gain it.
func surplus(keep []uintptr) (bool, error) {
	fail := func(err error) (bool, error) {
		return false, namespace.E(namespace.Internal, "read", "capabilities", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fail(err)
	}
	noNew, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return fail(err)
	}
	permitted := uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	if noNew == 1 && permitted&^mask(keep) == 0 {
		return false, nil
	}
	if data[0].Effective&(1<<unix.CAP_SETPCAP) == 0 {
		return false, namespace.E(namespace.Denied, "give up", "capabilities", errors.New("CAP_SETPCAP is missing"))
	}
	return true, nil
}

func mask(keep []uintptr) uint64 {
	var m uint64
	for _, c := range keep {
		m |= 1 << c
	}
	return m
}

// narrow takes all but keep out of what a program that this thread starts can have.
func narrow(keep []uintptr) error {
	fail := func(err error) error {
		return namespace.E(namespace.Denied, "give up", "capabilities", err)
	}
	kept := mask(keep)
	for c := uintptr(0); c <= lastCap; c++ {
		if kept&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // the kernel knows no more
			break
		}
		if err != nil {
			return fail(fmt.Errorf("capability %d: %w", c, err))
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fail(err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0 // takes the ambient ones along
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fail(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fail(err)
	}
	return nil
}
