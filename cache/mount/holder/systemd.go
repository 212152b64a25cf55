package holder

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Systemd is the Store of the service manager: sd_notify(3) FDSTORE=1. The
// manager hands everything back when it starts the service again.
type Systemd struct {
	socket string
	max    int // of files

	mu   sync.Mutex
	kept map[string][]*os.File // duplicates of what the manager has
}

// NewSystemd returns the store that the service manager offers to this process,
// by its environment, and nil if it offers none. It takes what the manager kept
// and clears that from the environment: it is to be called once. Managers older
// than systemd 254 do not say how much they keep, and are not used.
func NewSystemd() (*Systemd, error) {
	socket, limit := os.Getenv("NOTIFY_SOCKET"), os.Getenv("FDSTORE")
	if socket == "" || limit == "" {
		return nil, nil
	}
	most, err := strconv.Atoi(limit)
	if err != nil {
		return nil, fmt.Errorf("read $FDSTORE: %w", err)
	}
	s := &Systemd{socket: socket, max: most, kept: map[string][]*os.File{}}
	s.take(activation.Files(true))
	return s, nil
}

const managed = "spate-" // begins the manager's names of our files

// take keeps those of files that Put gave to the manager. What it was killed in the middle of has fewer files.
func (s *Systemd) take(files []*os.File) {
	byPart := map[string]*os.File{}
	for _, f := range files {
		byPart[f.Name()] = f
	}
	for full := range byPart {
		rest, ours := strings.CutPrefix(full, managed)
		name, first := strings.CutSuffix(rest, ".0")
		if !ours || !first {
			continue
		}
		for i := 0; byPart[part(name, i)] != nil; i++ {
			s.kept[name] = append(s.kept[name], byPart[part(name, i)])
		}
	}
}

func part(name string, i int) string { return managed + name + "." + strconv.Itoa(i) }

// Put implements Store.
func (s *Systemd) Put(name string, files ...*os.File) error {
	if err := s.put(name, files); err != nil {
		return fmt.Errorf("give %s to systemd: %w", name, err)
	}
	return nil
}

func (s *Systemd) put(name string, files []*os.File) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkFiles(len(files)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(files)
	for other, kept := range s.kept {
		if other != name {
			n += len(kept)
		}
	}
	if n > s.max {
		return fmt.Errorf("there is room for %d files: raise FileDescriptorStoreMax= of the unit", s.max)
	}
	dup, err := duplicate(files)
	if err != nil {
		return err
	}
	if err := s.drop(name); err != nil {
		closeAll(dup)
		return err
	}
	s.kept[name] = dup
	for i, f := range dup {
		if err := s.notify("FDSTORE=1\nFDNAME="+part(name, i), f); err != nil {
			return err
		}
	}
	return s.barrier()
}

// Get implements Store.
func (s *Systemd) Get(name string) ([]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.kept[name]
	if files == nil {
		return nil, fmt.Errorf("get %s from systemd: %w", name, fs.ErrNotExist)
	}
	dup, err := duplicate(files)
	if err != nil {
		return nil, fmt.Errorf("get %s from systemd: %w", name, err)
	}
	return dup, nil
}

// Drop implements Store.
func (s *Systemd) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.drop(name); err != nil {
		return fmt.Errorf("have systemd drop %s: %w", name, err)
	}
	return nil
}

// drop is Drop with s.mu held. The first goes last: without it take does not find the others.
func (s *Systemd) drop(name string) error {
	for i := range slices.Backward(s.kept[name]) {
		if err := s.notify("FDSTOREREMOVE=1\nFDNAME=" + part(name, i)); err != nil {
			return err
		}
	}
	closeAll(s.kept[name])
	delete(s.kept, name)
	return nil
}

// Names implements Store.
func (s *Systemd) Names() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.kept)), nil
}

// notify is sd_notify(3) with files.
func (s *Systemd) notify(state string, files ...*os.File) error {
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	fds := make([]int, 0, len(files))
	return holding(files, func(fd int) { fds = append(fds, fd) }, func() error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		err := unix.Sendmsg(sock, []byte(state), rights, &unix.SockaddrUnix{Name: s.socket}, unix.MSG_NOSIGNAL)
		if err != nil {
			return fmt.Errorf("send to %s: %w", s.socket, err)
		}
		return nil
	})
}

// barrier returns when the manager has read all that was sent before
// (sd_notify_barrier(3)): what a process sent that is gone by then is ignored.
func (s *Systemd) barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = s.notify("BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 1)); os.IsTimeout(err) {
		return fmt.Errorf("wait until it is read: %w", err)
	}
	return nil
}
