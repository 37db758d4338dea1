package disk

import "golang.org/x/sys/unix"

// Free returns how many bytes this process may still write to the file system of path.
func Free(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, Error("look at the file system of", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
