package holder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// listenFd is the descriptor that a process which Start has started finds its listener at.
const listenFd = 3

// Inherited returns the listener that Start gave to this process.
func Inherited() (*net.UnixListener, error) {
	f := os.NewFile(listenFd, "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the holder's listener: %w: the agent starts the holder", err)
	}
	unixLn, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, errors.New("take over the holder's listener: it is not a unix socket; the agent starts the holder")
	}
	return unixLn, nil
}

// Serve is what the holder process does: it keeps what clients put. It returns
// nil when it has kept nothing and nobody was connected for as long as idle
// says. It closes ln, and all that it kept. Only processes of the same user are served.
func Serve(ctx context.Context, ln *net.UnixListener, idle time.Duration) error {
	ln.SetUnlinkOnClose(false) // the path may be a successor's by then
	s := &service{ln: ln, idle: idle, kept: map[string][]*os.File{}, conns: map[*net.UnixConn]bool{}}
	defer context.AfterFunc(ctx, s.end)()
	s.timer = time.AfterFunc(idle, s.endIfIdle)
	defer s.timer.Stop()
	var err error
	for {
		var conn *net.UnixConn
		if conn, err = ln.AcceptUnix(); err != nil {
			break
		}
		s.serving.Go(func() { s.serve(conn) })
	}
	s.end()
	s.serving.Wait()
	for _, files := range s.kept {
		closeAll(files)
	}
	if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve the holder's clients: %w", err)
	}
	return ctx.Err()
}

type service struct {
	ln      *net.UnixListener
	idle    time.Duration
	serving sync.WaitGroup

	mu    sync.Mutex // guards the rest
	timer *time.Timer
	ended bool
	kept  map[string][]*os.File
	conns map[*net.UnixConn]bool
}

func (s *service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.ln.Close()
	for conn := range s.conns {
		conn.Close()
	}
}

func (s *service) endIfIdle() {
	s.mu.Lock()
	idle := len(s.conns) == 0 && len(s.kept) == 0
	s.ended = s.ended || idle // nobody is let in any more
	s.mu.Unlock()
	if idle {
		s.end()
	}
}

// enter reports whether conn may be served.
func (s *service) enter(conn *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || !sameUser(conn) {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *service) exit(conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	s.timer.Reset(s.idle)
}

func sameUser(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	outer := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return outer == nil && err == nil && int(peer.Uid) == os.Geteuid()
}

func (s *service) serve(conn *net.UnixConn) {
	defer conn.Close()
	if !s.enter(conn) {
		return
	}
	defer s.exit(conn)
	for {
		m, err := receive(conn)
		if err != nil {
			return
		}
		if err := s.answer(conn, m); err != nil {
			return
		}
	}
}

// answer does what m asks for. An error ends the connection.
func (s *service) answer(conn *net.UnixConn, m message) error {
	if err := m.check(); err != nil {
		closeAll(m.files)
		return send(conn, message{kind: kindFailed, text: err.Error()})
	}
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock() // also while sending: what is sent must stay open
	switch m.kind {
	case kindPut:
		closeAll(s.kept[m.text])
		s.kept[m.text] = m.files
	case kindDrop:
		closeAll(s.kept[m.text])
		delete(s.kept, m.text)
	case kindGet:
		files := s.kept[m.text]
		if files == nil {
			return send(conn, message{kind: kindNone})
		}
		return send(conn, message{kind: kindDone, files: files})
	case kindList:
		for _, name := range slices.Sorted(maps.Keys(s.kept)) {
			if err := send(conn, message{kind: kindName, text: name}); err != nil {
				return err
			}
		}
	}
	return send(conn, message{kind: kindDone})
}
