package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/agent"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// tamper flips one byte in what the first node serves and lets a new node read it.
func (s *story) tamper(ctx context.Context) error {
	liar := s.nodes[0]
	art, err := liar.artifact(ctx, s.ref)
	if err != nil {
		return err
	}
	victim := art.Files[0]
	for _, f := range art.Files {
		if strings.HasSuffix(f.Path, ".safetensors") {
			victim = f
			break
		}
	}
	digest, err := piece.ParseDigest(victim.Digest)
	if err != nil {
		return err
	}
	stored, err := filepath.Glob(filepath.Join(liar.data, "cache", "objects", "*", digest.Hex(), "data"))
	if err != nil || len(stored) != 1 {
		return fmt.Errorf("find object %s in the cache of %s: %v %v", digest, liar.name, stored, err)
	}
	if err := flip(stored[0], victim.Size/2); err != nil {
		return err
	}
	n, err := s.startNode(ctx, s.opts.Nodes)
	if err != nil {
		return err
	}
	if s.opts.Mount {
		err = n.client.Mount(ctx, agent.MountRequest{Reference: s.ref, Dir: n.view, Lazy: true})
	} else {
		err = s.open(ctx, n)
	}
	if err != nil {
		return err
	}
	if err := same(filepath.Join(n.view, victim.Path), filepath.Join(s.model, victim.Path)); err != nil {
		return fmt.Errorf("%s read a tampered file: %w", n.name, err)
	}
	if art, err = n.artifact(ctx, s.ref); err != nil {
		return err
	}
	s.result.RefusedPieces = art.Refused
	if art.Refused == 0 {
		return fmt.Errorf("%s never met the byte that was flipped on %s", n.name, liar.name)
	}
	s.say("one byte flipped in what %s serves: %s refused the piece, banned %s, and read %s right, from the registry",
		liar.name, n.name, liar.name, victim.Path)
	return nil
}

// flip changes one bit of the byte at off.
func flip(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b[:], off)
	return err
}

// same fails when two files differ.
func same(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += 1 << 20 {
		na, errA := io.ReadFull(fa, bufA)
		nb, errB := io.ReadFull(fb, bufB)
		if !bytes.Equal(bufA[:na], bufB[:nb]) {
			return fmt.Errorf("%s differs from %s in the MiB at offset %d", a, b, off)
		}
		if errA != nil || errB != nil {
			return errors.Join(notEOF(errA), notEOF(errB))
		}
	}
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// unsigned pushes a model that nobody signed and tries to use it.
func (s *story) unsigned(ctx context.Context) error {
	dir, ref := s.path("unsigned"), s.addr+"/demo/unsigned:v1"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}\n"), 0o644); err != nil {
		return err
	}
	if _, err := s.spate(ctx, "push", dir, ref); err != nil {
		return err
	}
	view := s.path("view", "unsigned")
	if err := os.MkdirAll(view, 0o755); err != nil {
		return err
	}
	_, err := s.spate(ctx, "pull", ref, view, "--data", s.nodes[0].data)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != ui.ExitNotTrusted {
		return fmt.Errorf("an unsigned model was not refused: %v", err)
	}
	s.result.UnsignedRefused = true
	s.say("an unsigned model is refused with exit code %d", ui.ExitNotTrusted)
	return nil
}
