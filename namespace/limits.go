package namespace

// Every bound on what may come from outside, each with its reason. Decoders check them before
// they allocate; encoders refuse to exceed them, so that nothing is written that cannot be read.
const (
	// NameBytesMax is NAME_MAX of Linux: no file system accepts a longer name.
	NameBytesMax = 255
	// PathBytesMax is PATH_MAX: the kernel resolves no longer path in one call.
	PathBytesMax = 4096
	// TargetBytesMax bounds a symlink's target (PATH_MAX less its NUL).
	TargetBytesMax = 4095
	// DepthMax bounds the nesting of directories: what fits into PATH_MAX with one-byte names.
	DepthMax = PathBytesMax / 2
	// XattrNameBytesMax is XATTR_NAME_MAX of Linux.
	XattrNameBytesMax = 255
	// XattrValueBytesMax is XATTR_SIZE_MAX of Linux.
	XattrValueBytesMax = 64 << 10
	// XattrSetBytesMax is XATTR_LIST_MAX and some room: all attributes of one file.
	XattrSetBytesMax = 256 << 10

	// ChunkBytesMax bounds a chunk, hence the memory one fault may cost.
	ChunkBytesMax = 2 << 20
	// ChunkWholeMax is the largest file that is one chunk; larger ones are cut by content.
	ChunkWholeMax = 1 << 20
	// FrameBytesMax bounds a decompressed frame: one large chunk, or small ones together.
	FrameBytesMax = ChunkBytesMax
	// FrameChunksMax bounds the chunks that share a frame.
	FrameChunksMax = 4096
	// HoleBytes is the granule of holes in sparse files: an aligned block of zeros this long is
	// a hole, whatever the source file system recorded, so that the digest does not depend on it.
	HoleBytes = 64 << 10
	// FileBytesMax bounds one file: off_t.
	FileBytesMax = 1<<63 - 1

	// PackBytesTarget is where a pack is closed: large enough that an origin holds few files,
	// small enough that a failed upload costs little.
	PackBytesTarget = 16 << 20
	// PackBytesMax bounds a pack: the target, one more frame and the directory.
	PackBytesMax = 64 << 20
	// CatalogEntriesSplit is the number of entries at which a subtree becomes its own catalog.
	CatalogEntriesSplit = 8 << 10
	// CatalogBytesMax bounds a decompressed catalog: a directory of some million entries.
	CatalogBytesMax = 1 << 30
	// ManifestBytesMax bounds a namespace manifest.
	ManifestBytesMax = 4 << 20
	// LocatorBytesMax bounds a locator.
	LocatorBytesMax = 1 << 30
	// IndexBytesMax bounds one segment of the origin's chunk index.
	IndexBytesMax = 4 << 30
	// DeltaBytesMax bounds the delta object of one catalog; what would be larger is fetched as chunks.
	DeltaBytesMax = 512 << 20
	// RefBytesMax bounds a ref's record: about 20,000 versions of one name.
	RefBytesMax = 8 << 20
	// MountsMax bounds the mounts of one namespace.
	MountsMax = 4096
	// RefNameBytesMax bounds a tree's, namespace's or channel's name.
	RefNameBytesMax = 200

	// ProfileEntriesMax bounds a profile: more than the files that a desktop reads until somebody works.
	ProfileEntriesMax = 64 << 10
	// ProfileRangesMax bounds the ranges of one file in a profile; checking them is quadratic.
	ProfileRangesMax = 512
	// ProfileBytesMax bounds a profile's record.
	ProfileBytesMax = 16 << 20
	// ProfilesMax bounds the profiles of one namespace.
	ProfilesMax = 64
	// LayoutsMax bounds the versions for which a profile's layout is kept: those that channels name.
	LayoutsMax = 8
	// LayoutBytesMax bounds a layout: some 45 bytes for each chunk.
	LayoutBytesMax = 64 << 20

	// LayersMax bounds the layers of a container image: eight times what container engines take.
	LayersMax = 1024
	// ImageRecordBytesMax bounds an index, manifest or configuration of a container image: what
	// registries accept.
	ImageRecordBytesMax = 4 << 20
)
