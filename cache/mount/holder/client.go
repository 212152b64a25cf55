package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a holder may take to answer. It waits for nothing but the processor.
const patience = 30 * time.Second

// A Client is the Store of a holder process.
type Client struct {
	socket string

	mu   sync.Mutex
	conn *net.UnixConn
}

// Start returns a client of the holder process that listens at socket. Where
// there is none it starts one with the command, which is to call Inherited and
// Serve: in a session of its own, so that it outlives this process and what
// ends it. Processes that may start a holder at the same socket must take turns.
func Start(socket string, command ...string) (*Client, error) {
	c, err := dial(socket)
	if err == nil {
		return c, nil
	}
	if !isNotRunning(err) {
		return nil, fmt.Errorf("connect to the holder at %s: %w", socket, err)
	}
	if err := start(socket, command); err != nil {
		return nil, fmt.Errorf("start a holder at %s: %w", socket, err)
	}
	if c, err = dial(socket); err != nil {
		return nil, fmt.Errorf("connect to the holder at %s, just started: %w", socket, err)
	}
	return c, nil
}

// isNotRunning reports whether err says that nobody listens, or did only a moment longer.
func isNotRunning(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOENT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.EOF},
		func(target error) bool { return errors.Is(err, target) })
}

func start(socket string, command []string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer ln.Close()
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	inherited, err := ln.File()
	if err != nil {
		return err
	}
	defer inherited.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = []*os.File{inherited} // listenFd
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // should it end first
	return nil
}

func dial(socket string) (*Client, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	c := &Client{socket: socket, conn: conn}
	if _, err := c.Names(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection. The holder keeps what it has.
func (c *Client) Close() error { return c.conn.Close() }

// Wait returns nil when the holder process is gone, and all that it kept with
// it: what is still open here can be put into another.
func (c *Client) Wait(ctx context.Context) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.socket, Net: "unixpacket"})
	if isNotRunning(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch the holder at %s: %w", c.socket, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.Read(make([]byte, 1)) // which never comes
	return ctx.Err()
}

// Put implements Store.
func (c *Client) Put(name string, files ...*os.File) error {
	m := message{kind: kindPut, text: name, files: files}
	_, _, err := c.ask(m)
	if err != nil {
		return fmt.Errorf("give %s to the holder: %w", name, err)
	}
	return nil
}

// Get implements Store.
func (c *Client) Get(name string) ([]*os.File, error) {
	_, files, err := c.ask(message{kind: kindGet, text: name})
	if err != nil {
		return nil, fmt.Errorf("get %s from the holder: %w", name, err)
	}
	return files, nil
}

// Drop implements Store.
func (c *Client) Drop(name string) error {
	if _, _, err := c.ask(message{kind: kindDrop, text: name}); err != nil {
		return fmt.Errorf("have the holder drop %s: %w", name, err)
	}
	return nil
}

// Names implements Store.
func (c *Client) Names() ([]string, error) {
	names, _, err := c.ask(message{kind: kindList})
	if err != nil {
		return nil, fmt.Errorf("ask the holder what it has: %w", err)
	}
	return names, nil
}

func (c *Client) ask(m message) (names []string, files []*os.File, err error) {
	if err := m.check(); err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, nil, err
	}
	if err := send(c.conn, m); err != nil {
		return nil, nil, err
	}
	for {
		answer, err := receive(c.conn)
		if err != nil {
			return nil, nil, err
		}
		switch answer.kind {
		case kindDone:
			return names, answer.files, nil
		case kindName:
			names = append(names, answer.text)
		case kindNone:
			return nil, nil, fs.ErrNotExist
		default:
			closeAll(answer.files)
			return nil, nil, errors.New(answer.text)
		}
	}
}
