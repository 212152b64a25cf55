package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resident returns how many of the first n bytes of a file are in the page cache.
func resident(t *testing.T, f *os.File, n int) int {
	t.Helper()
	mapped, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	page := os.Getpagesize()
	in := make([]byte, (n+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(n), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	pages := 0
	for _, b := range in {
		pages += int(b & 1)
	}
	return min(n, pages*page)
}

// cold drops a file from the page cache.
func cold(t *testing.T, f *os.File) {
	t.Helper()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

func TestPopulate(t *testing.T) {
	const length = 64 << 10
	data := content(1, 40*length+5)
	o := openObject(t, openStore(t, t.TempDir(), Options{}), treeOf(t, data, length), nil)
	for i := range o.object.Pieces() {
		if i != 3 && i != 20 {
			put(t, o, data, i)
		}
	}
	here := int64(len(data) - 2*length)

	cold(t, o.data)
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(o.data.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, o.shown, len(data)); n > len(data)/2 && st.Type != unix.TMPFS_MAGIC {
		t.Fatalf("%d of %d bytes are in memory already", n, len(data))
	}
	if got, err := o.Populate(t.Context(), 10*length); err != nil || got != 10*length {
		t.Errorf("populated %d bytes, %v, want %d", got, err, 10*length)
	}
	if n := resident(t, o.shown, 3*length); n != 3*length {
		t.Errorf("%d of the first %d bytes are in memory", n, 3*length)
	}
	if got, err := o.Populate(t.Context(), 1<<40); err != nil || got != here {
		t.Errorf("populated %d bytes, %v, want %d", got, err, here)
	}
	if n := resident(t, o.shown, len(data)); int64(n) < here {
		t.Errorf("%d bytes are in memory, want %d", n, here)
	}
	readAllBut(t, o, data, 3, 20)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := o.Populate(ctx, 1<<40); !errors.Is(err, context.Canceled) || got != 0 {
		t.Errorf("populated %d bytes after a cancellation, %v", got, err)
	}
	o.Close()
	if _, err := o.Populate(t.Context(), 1<<40); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("populating a closed object: %v", err)
	}
}

// readAllBut reads the object's pieces that are here and compares them.
func readAllBut(t *testing.T, o *Object, data []byte, absent ...int) {
	t.Helper()
	lacks := map[int]bool{}
	for _, i := range absent {
		lacks[i] = true
	}
	for i := range o.object.Pieces() {
		off, n := o.object.Span(i)
		got := make([]byte, n)
		if _, err := o.ReadAt(got, off); lacks[i] != (err != nil) {
			t.Errorf("piece %d: %v", i, err)
		} else if err == nil && string(got) != string(data[off:off+n]) {
			t.Errorf("piece %d has other bytes", i)
		}
	}
}
