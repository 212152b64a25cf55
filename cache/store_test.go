package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/piece"
)

// runAudits runs the store until n audits have ended.
func runAudits(t *testing.T, s *Store, n int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	for s.stats.audited.Load()+s.stats.quarantined.Load() < n {
		select {
		case err := <-done:
			t.Fatal("Run ended early:", err)
		default:
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func testOpenTwice(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 3*small)
	a := openObject(t, s, treeOf(t, data, small), nil)
	b := openObject(t, s, treeOf(t, data, small), nil)
	if a != b {
		t.Fatal("two objects for one digest")
	}
	if _, err := s.Open(treeOf(t, data, 2*small), nil); err == nil || !strings.Contains(err.Error(), "root") {
		t.Fatalf("open with another piece length: %v", err)
	}
	a.Close()
	put(t, b, data, 0)
	if err := b.Err(); err != nil {
		t.Errorf("Err with one use left: %v", err)
	}
	b.Close()
	if err := b.Err(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Err after the last Close: %v", err)
	}
	if err := putPiece(b, data, 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Put after Close: %v", err)
	}
}

func testRemove(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 3*small)
	o := openObject(t, s, treeOf(t, data, small), nil)
	d := o.Tree().Object().Digest
	put(t, o, data, 0)
	if err := s.Remove(d); err == nil || !o.Has(0) {
		t.Errorf("an open object was removed: %v", err)
	}
	o.Close()
	for range 2 { // the second one finds nothing
		if err := s.Remove(d); err != nil {
			t.Error(err)
		}
	}
	o = openObject(t, s, treeOf(t, data, small), nil)
	defer o.Close()
	if p := o.Progress(); p.Present+p.Claimed > 0 {
		t.Errorf("a removed object has %+v", p)
	}
}

func testAnotherRoot(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 3*small)
	o := openObject(t, s, treeOf(t, data, small), nil)
	putAll(t, o, data)
	o.Close()
	o = openObject(t, s, treeOf(t, data, 2*small), nil)
	if p := o.Progress(); p != (Progress{Total: 2}) {
		t.Fatalf("with another root on disk: %+v", p)
	}
	if s.Stats().BadClaims != 1 {
		t.Errorf("stats %+v", s.Stats())
	}
	putAll(t, o, data)
	readAll(t, o, data)
}

func testReopen(t *testing.T, dir string) {
	data := content(1, 9*small+1)
	tree := treeOf(t, data, small)
	s := openStore(t, dir, Options{})
	o := openObject(t, s, tree, nil)
	for i := range 5 {
		put(t, o, data, 2*i)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, dir, Options{})
	o = openObject(t, s, tree, nil)
	if p := o.Progress(); p != (Progress{Claimed: 5, Total: 10}) || o.Has(0) {
		t.Fatalf("an earlier process's pieces count before they were hashed: %+v", p)
	}
	if got := o.Missing(); !slices.Equal(got, []int{1, 3, 5, 7, 9}) {
		t.Errorf("missing %v", got)
	}
	if _, err := o.ReadAt(make([]byte, small), 2*small); err != nil || !o.Has(2) {
		t.Fatalf("a read of a claimed piece: %v", err)
	}
	if err := o.WriteBlock(4, make([]byte, small), 0); err != nil || !o.Has(4) {
		t.Fatalf("a block for a claimed piece: %v", err)
	}
	if err := o.Wait(t.Context(), 6); err != nil {
		t.Fatal(err)
	}
	if err := o.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := o.Progress(); p != (Progress{Present: 5, Total: 10}) {
		t.Fatalf("after Recheck: %+v", p)
	}
	for i := range 5 {
		got := make([]byte, small)
		if _, err := o.ReadAt(got, int64(2*i)*small); err != nil || !bytes.Equal(got, data[2*i*small:][:small]) {
			t.Fatalf("piece %d: %v", 2*i, err)
		}
	}
	if got := s.Stats(); got.BadClaims != 0 || got.Fetched != 0 {
		t.Errorf("stats %+v", got)
	}
}

func testLock(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	_, err := Open(dir, Options{})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatalf("a second process's Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir, Options{})
}

func testClosing(t *testing.T, dir string) {
	s := openStore(t, dir, Options{})
	data := content(1, 3*small)
	src := &silent{asked: make(chan int, 1)}
	o := openObject(t, s, treeOf(t, data, small), src)
	errs := make(chan error, 2)
	go func() { errs <- o.Ensure(t.Context(), 0, 1) }()
	go func() { errs <- o.Wait(t.Context(), 2) }()
	<-src.asked
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, fs.ErrClosed) {
			t.Errorf("a waiting reader when the store closes: %v", err)
		}
	}
	if _, err := s.Open(o.tree, nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func testAudit(t *testing.T, dir string) {
	data := content(1, 3*small)
	s := openStore(t, dir, Options{})
	o := openObject(t, s, treeOf(t, data, small), nil)
	empty := openObject(t, s, treeOf(t, nil, small), nil)
	putAll(t, o, data)
	runAudits(t, s, 2)
	if got := s.Stats(); got.Audited != 2 {
		t.Fatalf("stats %+v", got)
	}
	readAll(t, o, data)
	readAll(t, empty, nil)
	s.Close()

	s = openStore(t, dir, Options{})
	o = openObject(t, s, o.tree, nil)
	if err := o.Recheck(t.Context()); err != nil || !o.Complete() {
		t.Fatal("recheck:", err)
	}
	if left := s.queue.take(); len(left) != 0 {
		t.Error("an object that passed its audit is to be audited again")
	}
}

func testQuarantine(t *testing.T, dir string) {
	var alarm bytes.Buffer
	s := openStore(t, dir, Options{Logger: slog.New(slog.NewTextHandler(&alarm, nil))})
	data := content(1, 3*small)
	tree := treeNamed(t, sha256.Sum256([]byte("another object")), data, small)
	o := openObject(t, s, tree, nil)
	putAll(t, o, data)
	runAudits(t, s, 1)

	wrong := (*piece.WrongBytesError)(nil)
	for name, err := range map[string]error{
		"ReadAt": second(o.ReadAt(make([]byte, 1), 0)), "ReadContext": second(o.ReadContext(t.Context(), make([]byte, 1), 0)),
		"Ensure": o.Ensure(t.Context(), 0, 1), "Wait": o.Wait(t.Context(), 0), "Put": putPiece(o, data, 0),
		"Open": second(s.Open(tree, nil)), "Err": o.Err(),
	} {
		if !errors.As(err, &wrong) || wrong.Piece != -1 {
			t.Errorf("%s in quarantine: %v", name, err)
		}
	}
	if o.Complete() || o.Has(0) || s.Stats().Quarantined != 1 || !strings.Contains(alarm.String(), "ALARM") {
		t.Errorf("complete %v, stats %+v, log %s", o.Complete(), s.Stats(), &alarm)
	}
	s.Close()

	s = openStore(t, dir, Options{})
	if _, err := s.Open(tree, nil); !errors.As(err, &wrong) || !strings.Contains(err.Error(), s.quarantinePath(tree.Object())) {
		t.Errorf("Open in a later process: %v", err)
	}
	if _, err := os.Stat(s.objectPath(tree.Object().Digest)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the object is still among the good ones: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestDiskFull fills a file system of its own.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal("mount a small file system:", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := openStore(t, dir, Options{})
	little, big := content(1, 2*small), content(2, 128*small)
	one := openObject(t, s, treeOf(t, little, small), nil)
	src := &origin{data: big}
	src.into = openObject(t, s, treeOf(t, big, small), src)
	put(t, one, little, 0)

	err := src.into.Ensure(t.Context(), 0, int64(len(big)))
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free space under "+dir) || !strings.Contains(err.Error(), src.into.object.Digest.String()) {
		t.Fatalf("Ensure on a full disk: %v", err)
	}
	here := src.into.Progress().Present
	if here == 0 || here == 128 {
		t.Fatalf("%d pieces fit; the test proves nothing", here)
	}
	src.into.flying.Wait() // the other pieces' tries, which nobody waits for any more
	asked := src.asked.Load()
	if err := src.into.Ensure(t.Context(), int64(src.into.Missing()[0])*small, 1); !errors.Is(err, unix.ENOSPC) || src.asked.Load() != asked+1 {
		t.Errorf("a source was asked again although the disk is full: %v", err)
	}
	if _, err := one.ReadAt(make([]byte, small), 0); err != nil {
		t.Errorf("another object: %v", err)
	}
	for i, gap := range src.into.states {
		if gap != present {
			continue
		}
		got := make([]byte, small)
		if _, err := src.into.ReadAt(got, int64(i)*small); err != nil || !bytes.Equal(got, big[i*small:][:small]) {
			t.Fatalf("piece %d that did fit: %v", i, err)
		}
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	readAll(t, src.into, big)
}

func TestAuditWaitsForRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir(), Options{AuditQuiet: time.Minute})
		done := openObject(t, s, treeOf(t, content(1, small), small), nil)
		busy := openObject(t, s, treeOf(t, content(2, 3*small), small), nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		put(t, done, content(1, small), 0)
		for i := range 3 {
			time.Sleep(40 * time.Second)
			put(t, busy, content(2, 3*small), i)
			if synctest.Wait(); s.stats.audited.Load() != 0 {
				t.Fatal("audited while pieces came")
			}
		}
		time.Sleep(5 * time.Minute)
		if synctest.Wait(); s.stats.audited.Load() != 2 {
			t.Errorf("%d objects audited, want 2", s.stats.audited.Load())
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
