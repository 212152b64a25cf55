package storm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spate-project/spate/cmd/internal/agent"
)

const (
	readSize = 1 << 20

	// readPause is how many times as long as one read takes on the link alone
	// the next one waits, so that readers leave the links to the others.
	readPause = 10
)

// startReader starts an agent that shows the model and fetches only what is read.
func (s *storm) startReader(ctx context.Context, n *node) error {
	if err := n.start(ctx); err != nil {
		return err
	}
	return n.client.Mount(ctx, agent.MountRequest{Reference: s.ref, Dir: n.view, Lazy: true})
}

// readAtRandom reads one MiB after the other at random places, none of them
// twice, notes how long each took, and compares it with the source.
func (s *storm) readAtRandom(ctx context.Context, n *node, random *rand.Rand) error {
	places, err := s.places()
	if err != nil {
		return err
	}
	random.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	pause := seconds(readPause * readSize / s.rate)
	got, want := make([]byte, readSize), make([]byte, readSize)
	for _, p := range places {
		if !sleep(ctx, pause) {
			return nil
		}
		start := time.Now()
		if err := readAt(filepath.Join(n.view, p.path), got, p.off); err != nil {
			return fmt.Errorf("%s: %w", n.name(), err)
		}
		s.noteRead(time.Since(start))
		if err := readAt(filepath.Join(s.model, p.path), want, p.off); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: %s differs from the source in the MiB at offset %d", n.name(), p.path, p.off)
		}
	}
	return nil
}

func (s *storm) noteRead(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, d.Seconds())
}

// A place is where a read may begin.
type place struct {
	path string
	off  int64
}

// places returns each whole MiB of the model.
func (s *storm) places() (ps []place, err error) {
	err = fs.WalkDir(os.DirFS(s.model), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		for off := int64(0); off+readSize <= info.Size(); off += readSize {
			ps = append(ps, place{path, off})
		}
		return nil
	})
	return ps, err
}

func readAt(path string, b []byte, off int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(io.NewSectionReader(f, off, int64(len(b))), b)
	return err
}
