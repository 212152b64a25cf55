package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fill puts a file and a mount into dir.
func fill(dir string) error {
	mounted := filepath.Join(dir, "mounted")
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644),
		os.Mkdir(mounted, 0o755),
		unix.Mount("tmpfs", mounted, "tmpfs", 0, ""),
	)
}

// nothingAt waits until path does not exist.
func nothingAt(t *testing.T, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s is still there: %v", path, err)
		}
		time.Sleep(pollEvery)
	}
}

func TestScratchCloses(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv(childEnv, "sweep")
	s, err := NewScratch("lab-")
	if err != nil {
		t.Fatal(err)
	}
	err = fill(s.Dir)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	nothingAt(t, s.Dir)
}

func TestScratchClosesWithoutItsSweeper(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv(childEnv, "sweep")
	s, err := NewScratch("lab-")
	if err != nil {
		t.Fatal(err)
	}
	err = fill(s.Dir)
	s.sweeper.Process.Kill()
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	nothingAt(t, s.Dir)
}

func TestScratchGoesWhenItsProcessIsKilled(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	h := newHerd(t)
	p := startChild(t, h, "littered", "scratch")
	dir := strings.TrimPrefix(line(t, p, "scratch "), "scratch ")
	p.Kill()
	nothingAt(t, dir)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left (%v)", err)
	}
}

func TestScratchFails(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "absent"))
	if _, err := NewScratch("lab-"); err == nil {
		t.Error("a directory in an absent one")
	}
}

func TestSizeAndFree(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "a"), make([]byte, 100), 0o644),
		os.Mkdir(filepath.Join(dir, "sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "sub", "b"), make([]byte, 11), 0o644),
		os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Size(dir); n != 211 || err != nil {
		t.Errorf("Size: %d, %v; want 211", n, err)
	}
	if _, err := Size(filepath.Join(dir, "absent")); err == nil {
		t.Error("the size of nothing")
	}
	if n, err := Free(dir); n <= 0 || err != nil {
		t.Errorf("Free: %d, %v", n, err)
	}
	if _, err := Free(filepath.Join(dir, "absent")); err == nil {
		t.Error("room in nothing")
	}
}
