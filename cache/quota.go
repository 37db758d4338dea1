package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// quotaName is the file with the bound that was set, as a decimal number.
const quotaName = "quota"

// quota fills in the bound: the one that is asked for, that was set, or the default.
func (o *Options) quota() error {
	if o.QuotaBytes == 0 {
		o.QuotaBytes = o.keptQuota()
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = quotaDefault
		var st unix.Statfs_t
		if err := unix.Statfs(o.Dir, &st); err == nil {
			o.QuotaBytes = max(o.QuotaBytes, int64(st.Blocks)*st.Bsize/10)
		}
	}
	return checkQuota(o.Dir, o.QuotaBytes)
}

// keptQuota returns the bound that was set, 0 if none was. One that makes no sense is not worth a cache
// that does not open.
func (o *Options) keptQuota() int64 {
	path := filepath.Join(o.Dir, quotaName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	var n int64
	if err == nil {
		n, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
	if err == nil {
		err = checkQuota(o.Dir, n)
	}
	if err != nil {
		o.Logger.Error("the cache's quota cannot be read; the default is used", "file", path, "error", err)
		return 0
	}
	return n
}

func checkQuota(dir string, n int64) error {
	if n < quotaMin {
		return namespace.E(namespace.Invalid, "set quota of", dir, fmt.Errorf("%d bytes, at least %d", n, quotaMin))
	}
	return nil
}

// SetQuota changes the bound, now and for every later Open, durably. If the cache holds more, what is not
// held goes with the next write. Kinds: Invalid, Limit, Denied, Internal.
func (c *Cache) SetQuota(n int64) error {
	if err := checkQuota(c.o.Dir, n); err != nil {
		return err
	}
	if err := disk.Replace(filepath.Join(c.o.Dir, quotaName), []byte(strconv.FormatInt(n, 10)+"\n"), 0o600); err != nil {
		return err
	}
	c.quota.Store(n)
	c.segments.setGrain(grainOf(n))
	return nil
}
