package origin_test

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

// Several users may publish. One cannot give another's file a time, so a copy takes its place.
func TestRenewOfAnotherUsersFile(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "coppice-renew-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	d, err := origin.CreateDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b := storetest.Bytes(1, 1000)
	k := namespace.Key{Class: namespace.Pack, Digest: namespace.Sum(b)}
	if err := d.Put(t.Context(), k, b); err != nil {
		t.Fatal(err)
	}
	file := dir + "/pack/" + k.Digest.Hex()[:2] + "/" + k.Digest.Hex()
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(file, long, long); err != nil {
		t.Fatal(err)
	}
	for _, open := range []string{"", "/pack", "/tmp", "/pack/" + k.Digest.Hex()[:2]} {
		if err := os.Chmod(dir+open, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread() // what follows is of this thread only
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	err = d.Renew(t.Context(), k)
	if failed := unix.Setfsuid(os.Geteuid()); failed != nil {
		t.Fatal(failed)
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := storetest.ReadAll(t.Context(), d, k, 0, -1)
	when, failed := d.Time(t.Context(), k)
	if err != nil || failed != nil || string(got) != string(b) || time.Since(when) > time.Hour {
		t.Errorf("%d bytes of %v, %v, %v", len(got), when, err, failed)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || os.Geteuid() == 0 && st.Uid != 65534 {
		t.Errorf("it is of user %d, %v", st.Uid, err)
	}
}
