package mount

import (
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// opens counts the open files of a node by how they read. The kernel refuses
// to mix the two ways, so a file that is opened lazily becomes a passthrough
// file when it is complete and all have closed it.
type opens struct {
	cached, passthrough int
	backing             int32 // the kernel's name of the file that it reads, while passthrough > 0
}

// File handles. They tell Release what Open decided.
const (
	handleCached = iota + 1
	handlePassthrough
)

// Open opens a file to read: by passthrough if it is complete and nobody has it
// open otherwise.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// FOPEN_NOFLUSH: else a close would hang once nobody serves the mount.
	if f.passthrough && n.opens.cached == 0 && n.file.Complete() && f.back(n) {
		n.opens.passthrough++
		out.Fh = handlePassthrough
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
		out.BackingID = n.opens.backing
		return fuse.OK
	}
	n.opens.cached++
	out.Fh = handleCached
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// back names n's file to the kernel. f.mu is held.
func (f *FS) back(n *node) bool {
	if n.opens.passthrough > 0 {
		return true
	}
	id, errno := f.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(n.file.File().Fd())})
	if errno != 0 {
		f.passthrough = false
		f.log.Warn("complete files cannot be handed to the kernel and are read more slowly", "mount", f.dir, "file", n.path, "error", errno)
		return false
	}
	n.opens.backing = id
	return true
}

// Release ends an Open.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch in.Fh {
	case handleCached:
		n.opens.cached--
	case handlePassthrough:
		if n.opens.passthrough--; n.opens.passthrough == 0 {
			f.server.UnregisterBackingFd(n.opens.backing)
		}
	}
}

// Read waits for the bytes and returns all of them, up to the end of the file, or an error.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return nil, status
	}
	size := uint64(n.file.Size())
	if in.Offset >= size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(uint64(in.Size), size-in.Offset)]
	ctx, done := context.WithCancel(f.serving)
	defer done()
	go f.giveUp(ctx, done, cancel, in.Pid)
	got, err := n.file.ReadContext(ctx, buf, int64(in.Offset))
	if err == nil && got < len(buf) {
		err = io.ErrUnexpectedEOF // to the reader a short answer would be the end of the file
	}
	if err != nil {
		if ctx.Err() == nil && f.said.isNew(err.Error()) {
			f.log.Error("read failed", "mount", f.dir, "file", n.path, "offset", in.Offset, "error", err)
		}
		return nil, errno(err)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// giveUp ends a read when its thread is being killed or the connection is gone. The
// kernel interrupts a read for any signal; but as on a disk a signal that has a
// handler must not end it: what fails then may be a page fault within a system
// call, whose caller expects no such thing. The kernel interrupts only once, so
// from then on the thread is watched.
func (f *FS) giveUp(ctx context.Context, done context.CancelFunc, interrupted <-chan struct{}, thread uint32) {
	if f.conn.alive() { // else this read may have begun too late to be interrupted
		select {
		case <-ctx.Done():
			return
		case <-interrupted:
		}
	}
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for !dying(thread) && f.conn.alive() {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
	done()
}

// dying reports whether a thread has SIGKILL pending, as every fatal signal
// makes it, or is gone. One that cannot be seen from here counts as dying.
func dying(thread uint32) bool {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(thread), 10) + "/status")
	if err != nil {
		return true
	}
	for line := range bytes.Lines(status) {
		if mask, ok := bytes.CutPrefix(line, []byte("SigPnd:")); ok {
			pending, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
			return err != nil || pending&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return true
}
