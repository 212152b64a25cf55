package mount

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A server is go-fuse's, which is told which descriptor to serve by its number.
// So it can be made before it gets the kernel's connection, and lose that again.
type server struct {
	*fuse.Server
	fd int // its own until Serve returns
}

// negotiate makes a server for which request is the first of a connection, as
// FUSE_INIT is, and returns what it answers. It has no connection yet.
//
// The request of a new connection is the kernel's own. A successor's server is
// given the old one, for it expects to see one: it would take what comes first
// for it and handle nothing else before that is answered, and it would assume
// what it likes of what its predecessor had agreed upon.
func (f *FS) negotiate(request []byte) (s *server, reply []byte, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	kernel := os.NewFile(uintptr(pair[1]), "kernel")
	defer kernel.Close()
	if _, err := kernel.Write(request); err != nil {
		unix.Close(pair[0])
		return nil, nil, fmt.Errorf("hand on FUSE_INIT: %w", err)
	}
	opts := &fuse.MountOptions{
		MaxWrite: maxRead, MaxBackground: maxBackground,
		DisableSplice:            true, // a short splice would reach the reader as the end of the file
		ExplicitDataCacheControl: true,
		Logger:                   slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
	}
	if f.opts.NoPassthrough {
		opts.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	}
	made, err := fuse.NewServer(f, "/dev/fd/"+strconv.Itoa(pair[0]), opts)
	if err != nil {
		return nil, nil, err
	}
	s = &server{Server: made, fd: pair[0]}
	reply = make([]byte, minRead)
	n, err := kernel.Read(reply)
	if err != nil {
		s.turnTo(kernel)
		s.Serve()
		return nil, nil, fmt.Errorf("read the reply to FUSE_INIT: %w", err)
	}
	return s, reply[:n], nil
}

// turnTo has s serve what file is open for from its next request on. Serve must
// not have returned.
func (s *server) turnTo(file *os.File) (err error) {
	outer := withFd(file, func(fd int) { err = unix.Dup3(fd, s.fd, unix.O_CLOEXEC) })
	if err == nil {
		err = outer
	}
	return err
}

// abandon frees what s holds; it has not served.
func (s *server) abandon(conn *connection) {
	s.turnTo(conn.control) // which no request can be read from
	s.Serve()
}

// drain returns when a server that was turned away from its connection has
// ended what it was doing. Its threads wait in read(2) of the connection; a
// signal has the kernel begin the call again, with what the descriptor is by
// now. SIGURG is what the Go runtime interrupts its own threads with, and
// expects to come for no reason too.
func drain(done <-chan struct{}) {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		threads, _ := os.ReadDir("/proc/self/task")
		for _, t := range threads {
			if id, err := strconv.Atoi(t.Name()); err == nil {
				unix.Tgkill(os.Getpid(), id, unix.SIGURG)
			}
		}
		select {
		case <-done:
			return
		case <-again.C:
		}
	}
}
