package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"

	"golang.org/x/sys/unix"
)

// vmGenerationFiles are where kernels show the generation id of a virtual machine, with the offset of its
// 16 bytes: the blob that QEMU fills anew for every start and every restore.
var vmGenerationFiles = []struct {
	path   string
	offset int
}{
	{"/sys/firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw", 40},
}

// vmGeneration returns the generation id of this virtual machine, "" where the kernel shows none.
func vmGeneration() string {
	for _, f := range vmGenerationFiles {
		b, err := os.ReadFile(f.path)
		if err == nil && len(b) >= f.offset+16 && !bytes.Equal(b[f.offset:f.offset+16], make([]byte, 16)) {
			return hex.EncodeToString(b[f.offset : f.offset+16])
		}
	}
	return ""
}

// ueventBytesMax is what the kernel sends at most in one event (UEVENT_BUFFER_SIZE and a header).
const ueventBytesMax = 4 << 10

// watchGeneration calls changed whenever the kernel tells that this virtual machine was restored or
// copied (Linux 6.8 and newer), until ctx ends. Where the kernel does not tell anybody, it returns at once.
func watchGeneration(ctx context.Context, changed func()) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "uevents") // the runtime's poller waits
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = file.Close() })()
	buf := make([]byte, ueventBytesMax)
	for ctx.Err() == nil {
		n, err := file.Read(buf)
		if err != nil && ctx.Err() != nil {
			return
		}
		if err == nil && announcesGeneration(buf[:n]) {
			changed()
		}
		if err != nil && !os.IsTimeout(err) {
			return // an overrun would be ENOBUFS: then events were lost, and nobody can tell which
		}
	}
}

// announcesGeneration reports whether an event of the kernel tells of another generation.
func announcesGeneration(event []byte) bool {
	for line := range bytes.SplitSeq(event, []byte{0}) {
		if string(line) == "NEW_VMGENID=1" {
			return true
		}
	}
	return false
}
