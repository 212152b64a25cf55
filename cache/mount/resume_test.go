package mount

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/piece"
)

// hold opens the files of m once more, as a holder does.
func (m *mounted) hold(t *testing.T) []*os.File {
	t.Helper()
	var held []*os.File
	for _, f := range m.Files() {
		var fd int
		var err error
		if outer := withFd(f, func(old int) { fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0) }); outer != nil || err != nil {
			t.Fatal(outer, err)
		}
		held = append(held, os.NewFile(uintptr(fd), f.Name()))
	}
	return held
}

func digest(t *testing.T, data []byte) piece.Digest { t.Helper(); return tree(data).Object().Digest }

// leave leaves m to the holder of what it returns.
func (m *mounted) leave(t *testing.T) []*os.File {
	t.Helper()
	held := m.hold(t)
	m.Leave()
	if err := <-m.done; err != nil {
		t.Error("Run after Leave:", err)
	}
	m.Leave() // is no use any more, and does no harm
	return held
}

// TestLeave leaves the mount under a reader that waits for a piece.
func TestLeave(t *testing.T) {
	src := (&origin{data: content(30, testSize)}).held().open(t, patient)
	entry := Entry{Path: "a/f", Digest: digest(t, src.data), File: src.into}
	m := mountAt(t, Options{}, entry)
	_, out := startChild(t, "read", m.path("a/f"))
	<-src.begun
	held := m.leave(t)
	<-src.ended // for nobody waits for it any more
	if !isMountPoint(t, m.dir) {
		t.Fatal("the mount is gone")
	}
	src.goOn, src.begun = nil, nil
	next, err := New([]Entry{entry}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Resume(held); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- next.Run(ctx) }()
	if out.Scan(); out.Text() != sum(src.data) {
		t.Errorf("the reader got %q", out.Text())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if isMountPoint(t, m.dir) {
		t.Error("the successor left the mount behind")
	}
}

func TestResumeRefuses(t *testing.T) {
	src := (&origin{data: content(31, testSize)}).open(t, patient)
	entry := Entry{Path: "f", Digest: digest(t, src.data), File: src.into}
	other := entry
	other.Digest[0]++
	unnamed := entry
	unnamed.Digest = piece.Digest{}
	moved := entry
	moved.Path = "g"
	second := entry
	second.Path = "g/h"
	m := mountAt(t, Options{}, entry)
	for name, test := range map[string]struct {
		entries []Entry
		change  func([]*os.File) []*os.File
		says    string
	}{
		"no files":      {[]Entry{entry}, func(f []*os.File) []*os.File { return nil }, "resume a mount: there are 0 files"},
		"one file":      {[]Entry{entry}, func(f []*os.File) []*os.File { f[1].Close(); return f[:1] }, "1 files"},
		"wrong order":   {[]Entry{entry}, func(f []*os.File) []*os.File { slices.Reverse(f); return f }, "not /dev/fuse"},
		"other content": {[]Entry{other}, nil, "resume the mount " + m.dir + ": its files are not those"},
		"other path":    {[]Entry{moved}, nil, "its files are not those"},
		"more files":    {[]Entry{entry, second}, nil, "its files are not those"},
		"no digest":     {[]Entry{unnamed}, nil, "f has no digest"},
		"no record": {[]Entry{entry}, func(f []*os.File) []*os.File {
			f[1].Close()
			f[1] = memory(t, make([]byte, recordSize(2)))
			return f
		}, "not a memory file of a fixed size"},
	} {
		f, err := New(test.entries, Options{})
		if err != nil {
			t.Fatal(err)
		}
		files := m.hold(t)
		if test.change != nil {
			files = test.change(files)
		}
		if err := f.Resume(files); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
		for _, file := range files {
			if err := file.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: a file was left open: %v", name, err)
			}
		}
	}
	if got := runChild(t, "read", m.path("f")); got != sum(src.data) {
		t.Error("the refusals did harm:", got)
	}
}

func memory(t *testing.T, b []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestResumeGone: somebody unmounts what nobody serves. The FS can be mounted anew.
func TestResumeGone(t *testing.T) {
	src := (&origin{data: content(32, testSize)}).open(t, patient)
	entry := Entry{Path: "f", Digest: digest(t, src.data), File: src.into}
	m := mountAt(t, Options{}, entry)
	held := m.leave(t)
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	f, err := New([]Entry{entry}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Resume(held); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), m.dir) {
		t.Fatal(err)
	}
	if err := f.Mount(m.dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	if got := runChild(t, "read", m.path("f")); got != sum(src.data) {
		t.Error(got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestResumeWithoutPassthrough: what was agreed upon with the kernel stays, and is followed.
func TestResumeWithoutPassthrough(t *testing.T) {
	src := (&origin{data: content(33, testSize)}).open(t, patient)
	if err := src.into.Ensure(t.Context(), 0, testSize); err != nil {
		t.Fatal(err)
	}
	entry := Entry{Path: "f", Digest: digest(t, src.data), File: src.into}
	for _, first := range []bool{true, false} {
		m := mountAt(t, Options{NoPassthrough: first}, entry)
		f, err := New([]Entry{entry}, Options{NoPassthrough: !first})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Resume(m.leave(t)); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { done <- f.Run(ctx) }()
		if got := runChild(t, "read", m.path("f")); got != sum(src.data) {
			t.Errorf("NoPassthrough first %t, then %t: %s", first, !first, got)
		}
		if f.rec.opens(f.nodes[1]).backing.Load() != 0 {
			t.Error("the file was opened by passthrough")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestResumeNoRoom: the kernel was told that it may send more than the successor can take.
func TestResumeNoRoom(t *testing.T) {
	src := (&origin{data: content(34, 10)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	reply := slices.Clone(m.rec.head.Reply)
	if err := m.agree(reply, reply); err != nil {
		t.Error(err)
	}
	const maxWrite = 16 + 20 // within the reply: a header of 16 bytes, and what comes before
	binary.NativeEndian.PutUint32(reply[maxWrite:], maxRead+1)
	if err := m.agree(reply, m.rec.head.Reply); err == nil || !strings.Contains(err.Error(), "1048577 bytes") {
		t.Error(err)
	}
}

func TestClear(t *testing.T) {
	if err := Clear(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error("nothing is there:", err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := Clear(dir); err != nil || !isMountPoint(t, dir) {
		t.Errorf("another file system: %v", err)
	}
	src := (&origin{data: content(35, 10)}).open(t, patient)
	m := mountAt(t, Options{}, Entry{Path: "f", File: src.into})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(m.dir), link); err != nil {
		t.Fatal(err)
	}
	if err := Clear(filepath.Join(link, filepath.Base(m.dir))); err != nil || isMountPoint(t, m.dir) {
		t.Errorf("a mount of ours: %v", err)
	}
	if err := <-m.done; err != nil {
		t.Error(err)
	}
}

func TestRecordTooLong(t *testing.T) {
	if _, err := newRecord(head{Dir: "/" + strings.Repeat("x", headSize)}, 1); err == nil {
		t.Error("taken")
	}
}

// FuzzParseHead: what parseHead takes is written again as it was.
func FuzzParseHead(f *testing.F) {
	seed := func(h head) {
		b, err := json.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...))
	}
	h := head{Dir: "/mnt", Device: 5, Entries: make([]byte, 32), Request: make([]byte, 104), Reply: make([]byte, 80)}
	seed(h)
	h.Dir = "relative"
	seed(h)
	h.Dir, h.Request = "/mnt", make([]byte, 39)
	seed(h)
	h.Request, h.Reply = make([]byte, 40), make([]byte, 20)
	seed(h)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Add(make([]byte, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 || len(b) > headSize {
			return // never so: it is part of a file of a known size
		}
		h, err := parseHead(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if g, err := parseHead(append(binary.LittleEndian.AppendUint32(nil, uint32(len(again))), again...)); err != nil || g.Dir != h.Dir {
			t.Fatalf("%q: %v", again, err)
		}
	})
}
