package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	process, ok := s.kept().(*holder.Client)
	for ok && ctx.Err() == nil {
		err := process.Wait(ctx)
		if err == nil {
			s.agent.log.Warn("the holder of mounts is gone, and another one takes its place")
			err = s.openHolder()
		}
		if err == nil {
			process.Close()
			process, ok = s.kept().(*holder.Client)
			s.holdAll()
		} else if ctx.Err() == nil {
			s.agent.log.Error("containers would not outlive this agent now", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (s *images) holdAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for manifest, im := range s.open {
		if im.fs != nil {
			s.hold(manifest, im)
		}
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

const holdPrefix = "image-"

// holdName is the name of an image's mount at the holder.
func holdName(manifest digest.Digest) string { return holdPrefix + manifest.Encoded() }

// mount mounts im, or takes over the mount that an earlier agent left, and
// serves it until it is gone or left to the next agent.
func (s *images) mount(im *shown, manifest digest.Digest) error {
	im.dir = filepath.Join(s.dir, "images", manifest.Encoded())
	entries := make([]mount.Entry, 0, len(im.artifact.files))
	for _, f := range im.artifact.files {
		entries = append(entries, mount.Entry{Path: f.Path, Digest: f.object.Tree().Object().Digest, File: recorded{f.object, im.artifact.recorder}})
	}
	// A file system cannot be mounted from a file that is passed through.
	fsys, err := mount.New(entries, mount.Options{Logger: s.agent.log, NoPassthrough: true})
	if err != nil {
		return err
	}
	resumed, err := s.resume(fsys, manifest)
	if err != nil {
		return err
	}
	if !resumed {
		if err := errors.Join(mount.Clear(im.dir), os.MkdirAll(im.dir, 0o700)); err != nil {
			return err
		}
		if err := fsys.Mount(im.dir); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im.fs = fsys
	if !resumed {
		s.hold(manifest, im)
	}
	if s.left {
		im.fs.Leave()
	}
	s.agent.tasks.Go(func() { s.serve(im, manifest) }) // this is a task of the agent's, so there is room for one more
	return nil
}

// resume reports whether fsys has taken over the mount that is held of the
// image. It has not where there is none, or none that it could serve.
func (s *images) resume(fsys *mount.FS, manifest digest.Digest) (bool, error) {
	kept := s.kept()
	if kept == nil {
		return false, nil
	}
	files, err := kept.Get(holdName(manifest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = fsys.Resume(files)
	if err != nil && !errors.Is(err, mount.ErrGone) {
		s.agent.log.Error("an image is mounted anew, and its containers have lost it", "manifest", manifest, "err", err)
	}
	return err == nil, nil
}

// serve serves im until it is unmounted, or left to the next agent. Without a
// holder it ends with the agent.
func (s *images) serve(im *shown, manifest digest.Digest) {
	running := s.agent.context()
	if s.kept() != nil {
		running = context.WithoutCancel(running)
	}
	if err := im.fs.Run(running); err != nil {
		s.agent.log.Error("serve an image", "reference", im.artifact.reference, "err", err)
	}
	s.mu.Lock()
	if s.open[manifest] == im {
		delete(s.open, manifest)
		if !s.left && s.holder != nil {
			if err := s.holder.Drop(holdName(manifest)); err != nil {
				s.agent.log.Warn("let go of an image's mount", "reference", im.artifact.reference, "err", err)
			}
		}
	}
	removed := !s.left && s.agent.context().Err() == nil
	s.mu.Unlock()
	s.agent.release(im.artifact, need{})
	if removed {
		s.free(im)
	}
	close(im.done)
}

// leave leaves all mounts to the next agent. What was not answered by then it will be asked.
func (s *images) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holder == nil {
		return
	}
	s.left = true
	for _, im := range s.open {
		if im.fs != nil {
			im.fs.Leave()
		}
	}
}

// clear takes away what is mounted, or held, of images that are not open: what
// an agent left that was killed while it opened or closed them.
func (s *images) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := make(map[string]bool)
	for manifest := range s.open {
		open[manifest.Encoded()] = true
	}
	var errs []error
	if s.holder != nil {
		names, err := s.holder.Names()
		errs = append(errs, err)
		for _, name := range names {
			if hex, ok := strings.CutPrefix(name, holdPrefix); ok && !open[hex] {
				errs = append(errs, s.holder.Drop(name))
			}
		}
	}
	dirs, err := os.ReadDir(filepath.Join(s.dir, "images"))
	errs = append(errs, err)
	for _, d := range dirs {
		if dir := filepath.Join(s.dir, "images", d.Name()); !open[d.Name()] {
			errs = append(errs, mount.Clear(dir), os.Remove(dir))
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.agent.log.Warn("take away what is left of images", "err", err)
	}
}
