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
	if f.leaving {
		return fuse.EINTR
	}
	// FOPEN_NOFLUSH: else a close would hang once nobody serves the mount.
	opens := f.rec.opens(n)
	if opens.cached.Load() == 0 && f.back(n, opens) {
		opens.passthrough.Add(1)
		out.Fh = handlePassthrough
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
		out.BackingID = opens.backing.Load()
		return fuse.OK
	}
	opens.cached.Add(1)
	out.Fh = handleCached
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// back names n's file to the kernel, if it is complete. f.mu is held.
func (f *FS) back(n *node, opens *opens) bool {
	if opens.passthrough.Load() > 0 {
		return true
	}
	if !f.passthrough || !n.file.Complete() {
		return false
	}
	id, errno := f.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(n.file.File().Fd())})
	if errno != 0 {
		f.passthrough = false
		f.log.Warn("complete files cannot be handed to the kernel and are read more slowly", "mount", f.dir, "file", n.path, "error", errno)
		return false
	}
	opens.backing.Store(id)
	return true
}

// Release ends an Open. One that was sent before may have been counted by a
// server that died or left then; it is not counted, for a count that is too low
// would have the kernel refuse to open the file, and one that is too high only
// keeps the file from being opened in the other way.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	n, status := f.node(in.NodeId)
	if !status.Ok() || in.Unique&resent != 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	opens := f.rec.opens(n)
	switch in.Fh {
	case handleCached:
		opens.cached.Add(-1)
	case handlePassthrough:
		if opens.passthrough.Add(-1) == 0 {
			f.server.UnregisterBackingFd(opens.backing.Load())
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
