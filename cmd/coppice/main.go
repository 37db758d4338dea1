// Command coppice runs operating-system and application trees from the network: it imports and
// publishes them, serves them, mounts them and switches endpoints between versions.
//
// This package is words and wiring. main.go, root.go, exit.go and output.go are what every
// command shares; one file a noun has its verbs; system.go is the only place where the origin,
// the cache, the builder, the mount and the follower meet; daemon*.go is the process that keeps
// mounts alive, and control.go how commands speak to it.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"coppice.dev/coppice/internal/launch"
	"coppice.dev/coppice/internal/sandbox"
)

func main() {
	if sandbox.IsInit(os.Args) {
		os.Exit(sandbox.Init())
	}
	if launch.Is(os.Args) {
		os.Exit(launch.Run(os.Args))
	}
	// Catalogs and indexes are mapped, not allocated: the heap is small and may be kept so.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
