package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Scratch is a directory that goes away with its process, whatever ends that:
// another process, the sweeper, waits for it. Mounts below it go too.
type Scratch struct {
	Dir string

	sweeper *exec.Cmd
	alive   io.Closer // the sweeper waits for its end
}

// NewScratch makes a directory in the default place for temporary files, whose
// name begins with prefix. sweep are this program's arguments for a process
// that calls Sweep with the directory, which follows them, and its standard
// input. The caller must Close it after everything that uses the directory.
func NewScratch(prefix string, sweep ...string) (*Scratch, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	s := &Scratch{Dir: dir}
	if err := s.watch(sweep); err != nil {
		return nil, errors.Join(fmt.Errorf("start what sweeps %s: %w", dir, err), os.RemoveAll(dir))
	}
	return s, nil
}

func (s *Scratch) watch(sweep []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.sweeper = exec.Command(self, append(sweep, s.Dir)...)
	s.sweeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of a Ctrl-C's reach
	s.alive, err = s.sweeper.StdinPipe()
	if err != nil {
		return err
	}
	return s.sweeper.Start()
}

// Close removes the directory.
func (s *Scratch) Close() error {
	s.alive.Close()
	s.sweeper.Wait()
	return remove(s.Dir) // nothing is left, unless somebody killed the sweeper
}

// sweepFor is how long Sweep tries: processes that were killed with their
// parent may still be writing.
const sweepFor = 10 * time.Second

// Sweep waits until r ends, then takes away what is mounted below dir, and dir.
func Sweep(dir string, r io.Reader) error {
	io.Copy(io.Discard, r)
	for until := time.Now().Add(sweepFor); ; time.Sleep(pollEvery) {
		if err := remove(dir); err == nil || time.Now().After(until) {
			return err
		}
	}
}

func remove(dir string) error {
	if err := detachBelow(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// detachBelow takes mounts away, also of file systems whose process is dead.
func detachBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	for line := range bytes.Lines(mounts) {
		if f := strings.Fields(string(line)); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", f[1], err))
			}
		}
	}
	return errors.Join(errs...)
}
