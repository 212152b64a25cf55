package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/oci/model/format"
)

// weights is one safetensors file, to be read in steps.
type weights struct {
	file   *os.File
	size   int64
	header *format.Table
	mapped []byte // the whole file, or nil
	buf    []byte // one step
}

// openWeights opens a file and reads its header as engines do, by pread.
//
// The mapping is private, as PyTorch makes it, and without MADV_SEQUENTIAL or
// MADV_WILLNEED, as PyTorch leaves it: the read-ahead is what an engine meets.
func openWeights(path string, mmap bool) (_ *weights, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	w := &weights{file: f}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	w.size = info.Size()
	if w.header, err = format.ReadSafetensors(f, w.size, format.MaxHeader); err != nil {
		return nil, err
	}
	w.buf = make([]byte, step)
	if !mmap {
		return w, nil
	}
	w.mapped, err = unix.Mmap(int(f.Fd()), 0, int(w.size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return w, nil
}

// at returns n bytes at off, until release or the next at.
func (w *weights) at(off, n int64) ([]byte, error) {
	if w.mapped == nil {
		_, err := w.file.ReadAt(w.buf[:n], off)
		return w.buf[:n], err
	}
	// Fault the pages in by a system call: a goroutine that waits for a page by
	// touching it keeps its processor from all others. EFAULT stands for the
	// SIGBUS that touching would bring; on any other error touching will tell.
	if unix.Madvise(w.pages(off, n), unix.MADV_POPULATE_READ) == unix.EFAULT {
		return nil, errFault
	}
	return w.mapped[off : off+n], nil
}

// load copies n bytes at off, as an engine does to its accelerator. They are valid until the next load.
func (w *weights) load(off, n int64) ([]byte, error) {
	b, err := w.at(off, n)
	if err == nil && w.mapped != nil {
		err = guarded(func() { copy(w.buf, b) })
	}
	return w.buf[:n], err
}

// release lets go of the pages; the page cache keeps them. It begins at a whole
// step, since a fault also maps pages before the one that was touched.
func (w *weights) release(off, n int64) {
	if w.mapped != nil {
		begin := off &^ (step - 1)
		unix.Madvise(w.pages(begin, off+n-begin), unix.MADV_DONTNEED)
	}
}

// pages returns the whole pages that hold n bytes at off.
func (w *weights) pages(off, n int64) []byte {
	page := int64(os.Getpagesize())
	return w.mapped[off&^(page-1) : min((off+n+page-1)&^(page-1), w.size)]
}

func (w *weights) close() {
	if w.mapped != nil {
		unix.Munmap(w.mapped)
	}
	w.file.Close()
}

// equal compares n bytes at off of both files, and returns how long it took to
// load those of got. A page that cannot be read is an error.
func equal(got, want *weights, off, n int64) (waited time.Duration, err error) {
	defer got.release(off, n)
	defer want.release(off, n)
	begin := time.Now()
	a, err := got.load(off, n)
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	waited = time.Since(begin)
	b, err := want.at(off, n)
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of the source: %w", n, off, err)
	}
	i, err := difference(a, b)
	switch {
	case err != nil:
		return 0, fmt.Errorf("compare %d bytes at %d with the source: %w", n, off, err)
	case i >= 0:
		return 0, fmt.Errorf("byte %d of the file differs from the source", off+int64(i))
	}
	return waited, nil
}

var errFault = errors.New("page fault: the file system failed, or the file was cut short")

// difference returns the first index at which a and b, of one length, differ, or -1.
func difference(a, b []byte) (i int, err error) {
	i = -1
	err = guarded(func() {
		if bytes.Equal(a, b) {
			return
		}
		for i = range a {
			if a[i] != b[i] {
				break
			}
		}
	})
	return i, err
}

// guarded calls f. Where the kernel has no page to give it returns errFault; the
// program would otherwise end with SIGBUS.
func guarded(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // of the address that could not be read
			err = errFault
		default:
			panic(fault)
		}
	}()
	f()
	return nil
}
