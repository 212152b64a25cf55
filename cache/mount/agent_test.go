package mount

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/mount/holder"
	"github.com/spate-project/spate/cache/piece"
)

// A slowFile has known bytes, or those of an open file, and takes a while to read them.
type slowFile struct {
	size  int64
	file  *os.File // nil: known bytes
	whole bool
	most  time.Duration
}

func (f *slowFile) Size() int64    { return f.size }
func (f *slowFile) Complete() bool { return f.whole }
func (f *slowFile) File() *os.File { return f.file }

func (f *slowFile) ReadContext(ctx context.Context, p []byte, off int64) (int, error) {
	select {
	case <-time.After(rand.N(f.most + 1)):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if f.file != nil {
		return f.file.ReadAt(p, off)
	}
	known(p, off)
	return len(p), nil
}

// known fills p with the known bytes at off.
func known(p []byte, off int64) {
	words := make([]byte, 0, len(p)+16)
	for at := off / 8; len(words) < len(p)+8; at++ {
		words = binary.LittleEndian.AppendUint64(words, uint64(at)*0x9E3779B97F4A7C15)
	}
	copy(p, words[off%8:])
}

const largeSize = 64 << 30 // so that hardly any read finds its bytes in the page cache

// agent mounts at dir what is in data, or takes that mount over, until it is
// killed. On SIGTERM it leaves the mount and lives on.
//
//	large   known bytes, slow
//	whole   a complete file
//	turns   a file that is complete once there is one called "complete" in data
//	blob    a file that never gets complete, slow
//
// With a file "erofs" in data it refuses passthrough.
func agent(socket, data, dir string) error {
	store, err := holder.Start(socket, "/nothing/to/start")
	if err != nil {
		return err
	}
	exists := func(name string) bool { _, err := os.Stat(filepath.Join(data, name)); return err == nil }
	entries := []Entry{{Path: "dir/large", Digest: piece.Digest{1}, File: &slowFile{size: largeSize, most: 20 * time.Millisecond}}}
	for i, name := range []string{"whole", "turns", "blob"} {
		f, err := os.Open(filepath.Join(data, name))
		if err != nil {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		file := &slowFile{size: info.Size(), file: f, whole: name == "whole" || name == "turns" && exists("complete")}
		if name == "blob" {
			file.most = 5 * time.Millisecond
		}
		entries = append(entries, Entry{Path: name, Digest: piece.Digest{2, byte(i)}, File: file})
	}
	f, err := New(entries, Options{NoPassthrough: exists("erofs")})
	if err != nil {
		return err
	}
	did := "resumed"
	files, err := store.Get("mount")
	if err == nil {
		err = f.Resume(files)
	}
	if err != nil {
		did = "mounted: " + err.Error()
		if err := errors.Join(store.Drop("mount"), Clear(dir), f.Mount(dir)); err != nil {
			return err
		}
		if err := store.Put("mount", f.Files()...); err != nil {
			return err
		}
	}
	go func() {
		term := make(chan os.Signal, 1)
		signal.Notify(term, unix.SIGTERM)
		<-term
		f.Leave()
	}()
	fmt.Println(did)
	if err := f.Run(context.Background()); err != nil {
		return err
	}
	fmt.Println("ended")
	select {}
}

// readers are 200 that read dir/large within mount at random, and open, list and
// look up at times, until their standard input ends.
func readers(mount string) error {
	if err := os.Chdir(filepath.Join(mount, "dir")); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var reads atomic.Int64
	errs := make(chan error, 200)
	for range cap(errs) {
		go func() { errs <- readAtRandom(ctx, &reads) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			return err
		}
	}
	fmt.Println("read", reads.Load())
	return nil
}

func readAtRandom(ctx context.Context, reads *atomic.Int64) error {
	f, err := os.Open("large")
	if err != nil {
		return err
	}
	kept, err := os.Open("large") // through all restarts
	if err != nil {
		return err
	}
	got, want := make([]byte, 16<<10), make([]byte, 16<<10)
	for ctx.Err() == nil {
		n := 1 + rand.IntN(len(got))
		off := rand.Int64N(largeSize - int64(n))
		for _, file := range []*os.File{f, kept} {
			if _, err := file.ReadAt(got[:n], off); err != nil {
				return err
			}
			known(want[:n], off)
			if !bytes.Equal(got[:n], want[:n]) {
				return fmt.Errorf("wrong bytes at %d", off)
			}
		}
		if n := reads.Add(1); n%500 == 0 {
			fmt.Println("reads", n)
		}
		switch rand.IntN(8) {
		case 0:
			f.Close()
			if f, err = os.Open("large"); err != nil {
				return err
			}
		case 1:
			if names, err := os.ReadDir("."); err != nil || len(names) != 1 {
				return fmt.Errorf("list: %v, %v", names, err)
			}
		case 2:
			if _, err := os.Stat("nothing-" + strconv.Itoa(rand.IntN(1e9))); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("look up what is not there: %v", err)
			}
		}
	}
	return nil
}
