module coppice.dev/coppice

go 1.26.8

require (
	github.com/PlakarKorp/go-cdc-chunkers v1.1.0 // indirect
	github.com/containerd/continuity v0.5.0 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/klauspost/pgzip v1.3.0 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/ulikunitz/xz v0.5.17 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.35.1 // indirect
)
