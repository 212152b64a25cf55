package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/spate-project/spate/cache/mount"
	"github.com/spate-project/spate/cache/mount/holder"
)

func (s *images) openHolder() error {
	kept, err := holder.Open(filepath.Join(s.dir, "holder.sock"), s.agent.opts.Holder...)
	if err != nil {
		return fmt.Errorf("find or start the holder of mounts: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holder = kept
	return nil
}

// kept returns the holder, nil when there is none.
func (s *images) kept() holder.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holder
}

// keep gives all mounts to another holder whenever the one that has them dies, until ctx ends.
func (s *images) keep(ctx context.Context) {
	for {
		process, ok := s.kept().(*holder.Client)
		if !ok || process.Wait(ctx) != nil {
			return
		}
		process.Close()
		s.agent.log.Warn("the holder of mounts is gone, and another one takes its place")
		if err := s.openHolder(); err != nil {
			s.agent.log.Error("containers will not outlive this agent", "err", err)
			return
		}
		s.mu.Lock()
		for manifest, im := range s.open {
			if im.fs != nil {
				s.hold(manifest, im)
			}
		}
		s.mu.Unlock()
	}
}

// hold gives a mount to the holder. The caller holds s.mu.
func (s *images) hold(manifest digest.Digest, im *shown) {
	if s.holder == nil {
		return
	}
	if err := s.holder.Put(holdName(manifest), im.fs.Files()...); err != nil {
		s.agent.log.Error("containers of an image will not outlive this agent", "reference", im.artifact.reference, "err", err)
	}
}

// holdName is the name of an image's mount at the holder.
func holdName(manifest digest.Digest) string { return "image-" + manifest.Encoded() }

// resume reports whether fsys has taken over the mount that is held of the image.
func (s *images) resume(fsys *mount.FS, manifest digest.Digest) bool {
	kept := s.kept()
	if kept == nil {
		return false
	}
	files, err := kept.Get(holdName(manifest))
	if err == nil {
		err = fsys.Resume(files)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, mount.ErrGone) {
		s.agent.log.Error("an image is mounted anew, and its containers have lost it", "manifest", manifest, "err", err)
	}
	return err == nil
}

// serve serves im until it is unmounted, or the agent ends and leaves it to the next one.
func (s *images) serve(im *shown, manifest digest.Digest) {
	s.agent.mu.Lock()
	running := s.agent.running
	s.agent.mu.Unlock()
	stop := func() bool { return true }
	kept := s.kept() != nil
	if kept {
		stop = context.AfterFunc(running, im.fs.Leave)
		running = context.WithoutCancel(running)
	}
	if err := im.fs.Run(running); err != nil {
		s.agent.log.Error("serve an image", "reference", im.artifact.reference, "err", err)
	}
	if gone := stop(); gone && kept {
		if err := s.kept().Drop(holdName(manifest)); err != nil {
			s.agent.log.Warn("let go of an image's mount", "reference", im.artifact.reference, "err", err)
		}
	}
	s.agent.release(im.artifact)
	s.forget(manifest, im)
	close(im.done)
}
