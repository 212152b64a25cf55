package holder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// This test program is also the holder, and a client that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		if err := child(os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(args []string) error {
	switch args[0] {
	case "hold":
		ln, err := Inherited()
		if err != nil {
			return err
		}
		return Serve(context.Background(), ln, time.Hour)
	case "client": // puts a file and waits to be killed
		c, err := Start(args[1], self(), "hold")
		if err != nil {
			return err
		}
		f, err := memory("kept")
		if err == nil {
			err = c.Put("mine", f)
		}
		if err != nil {
			return err
		}
		fmt.Println("put")
		select {}
	case "restarted": // by the service manager: prints what it kept
		s, err := NewSystemd()
		if err != nil {
			return err
		}
		names, err := s.Names()
		if err != nil {
			return err
		}
		for _, name := range names {
			files, err := s.Get(name)
			if err != nil {
				return err
			}
			fmt.Print(name)
			for _, f := range files {
				fmt.Print(" ", text(f))
			}
			fmt.Println()
		}
		return nil
	}
	return fmt.Errorf("no command %q", args[0])
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// memory returns an open file with text in it.
func memory(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "test")
	_, err = f.WriteAt([]byte(text), 0)
	return f, err
}

func text(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1000))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func newFile(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := memory(text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// startHolder starts a holder process, which is killed when the test ends.
func startHolder(t *testing.T) (*Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "holder.sock")
	c, err := Start(socket, self(), "hold")
	if err != nil {
		t.Fatal(err)
	}
	killLater(t, c)
	return c, socket
}

func killLater(t *testing.T, c *Client) {
	pid := peer(t, c)
	t.Cleanup(func() {
		c.Close()
		unix.Kill(pid, unix.SIGKILL)
	})
}

// peer returns the id of the process that listens. The kernel names the one that made the listener.
func peer(t *testing.T, c *Client) int {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	var sockets []string
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == c.socket {
			sockets = append(sockets, "socket:["+f[6]+"]")
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		to, _ := os.Readlink(link) // some are gone by now
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		if slices.Contains(sockets, to) && pid != os.Getpid() {
			return pid
		}
	}
	t.Fatal("no process listens at ", c.socket)
	return 0
}

func testStore(t *testing.T, s Store) {
	a, b := newFile(t, "a"), newFile(t, "b")
	get := func(name string) string {
		t.Helper()
		files, err := s.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll(files)
		var all []string
		for _, f := range files {
			all = append(all, text(f))
		}
		return strings.Join(all, " ")
	}
	if names, err := s.Names(); len(names) != 0 || err != nil {
		t.Fatalf("an empty store has %q, %v", names, err)
	}
	if _, err := s.Get("none"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "get none from") {
		t.Errorf("Get of what is not there: %v", err)
	}
	if err := s.Drop("none"); err != nil {
		t.Error("Drop of what is not there:", err)
	}
	if err := errors.Join(s.Put("two", a, b), s.Put("one", b)); err != nil {
		t.Fatal(err)
	}
	if got := get("two"); got != "a b" {
		t.Errorf("two is %q", got)
	}
	if err := s.Put("two", b, a, a); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if got := get("two") + ", " + get("one"); got != "b a a, b" {
		t.Errorf("two, one are %q", got)
	}
	if names, err := s.Names(); !slices.Equal(names, []string{"one", "two"}) || err != nil {
		t.Errorf("names %q, %v", names, err)
	}
	if err := s.Drop("two"); err != nil {
		t.Error(err)
	}
	if names, err := s.Names(); !slices.Equal(names, []string{"one"}) || err != nil {
		t.Errorf("names after Drop: %q, %v", names, err)
	}
	for _, name := range []string{"", "a b", "a:b", "a\n", "é", strings.Repeat("x", maxName+1)} {
		if err := s.Put(name, b); err == nil || !strings.Contains(err.Error(), "give ") {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if err := s.Put(strings.Repeat("x", maxName), b); err != nil {
		t.Error("the longest name:", err)
	}
	many := slices.Repeat([]*os.File{b}, maxFiles)
	if err := s.Put("many", many...); err != nil {
		t.Error("the most files:", err)
	}
	if err := s.Put("many", append(many, b)...); err == nil {
		t.Error("too many files are taken")
	}
	if err := s.Put("many"); err == nil {
		t.Error("no files are taken")
	}
	if err := s.Put("closed", a); err == nil {
		t.Error("a closed file is taken")
	}
}

func TestClient(t *testing.T) {
	c, socket := startHolder(t)
	testStore(t, c)
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", st.Mode(), err)
	}
	names, err := c.Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := c.Drop(name); err != nil {
			t.Error(err)
		}
	}
	for i := range 500 { // more than one message lists
		if err := c.Put(fmt.Sprintf("%0128d", i), os.Stdin); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := c.Names(); len(names) != 500 || err != nil {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// TestOutlives kills the process, and all its group, that started the holder.
func TestOutlives(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "holder.sock")
	cmd := exec.Command(self(), "client", socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
	}
	t.Cleanup(kill)
	lines := bufio.NewScanner(out)
	if lines.Scan(); lines.Text() != "put" {
		t.Fatal(lines.Text())
	}
	kill()
	c, err := Start(socket, "/nothing/to/start")
	if err != nil {
		t.Fatal(err)
	}
	killLater(t, c)
	files, err := c.Get("mine")
	if err != nil || len(files) != 1 || text(files[0]) != "kept" {
		t.Fatal(files, err)
	}
	closeAll(files)
}

func TestHolderKilled(t *testing.T) {
	c, socket := startHolder(t)
	if err := c.Put("x", newFile(t, "x")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Error("Wait for a holder that lives:", err)
	}
	unix.Kill(peer(t, c), unix.SIGKILL)
	if err := c.Wait(t.Context()); err != nil {
		t.Error("Wait:", err)
	}
	if _, err := c.Get("x"); err == nil || !strings.Contains(err.Error(), "get x from the holder") {
		t.Error("Get from a dead holder:", err)
	}
	again, err := Start(socket, self(), "hold")
	if err != nil {
		t.Fatal(err)
	}
	killLater(t, again)
	if names, err := again.Names(); len(names) != 0 || err != nil {
		t.Errorf("a new holder has %q, %v", names, err)
	}
}

func TestStartFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "holder.sock")
	for _, test := range [][]string{
		{socket, "/nothing/to/start"},
		{socket, "/bin/true"},
		{filepath.Join(t.TempDir(), strings.Repeat("x", 200)), self(), "hold"},
		{filepath.Join(t.TempDir(), "none", "sock"), self(), "hold"},
	} {
		if c, err := Start(test[0], test[1:]...); err == nil || !strings.Contains(err.Error(), test[0]) {
			t.Errorf("Start(%q): %v, %v", test, c, err)
		}
	}
}

// serveHere serves in this process.
func serveHere(tb testing.TB, ctx context.Context, idle time.Duration) (socket string, done chan error) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "holder") // short enough for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		tb.Fatal(err)
	}
	done = make(chan error, 1)
	go func() { done <- Serve(ctx, ln, idle) }()
	return socket, done
}

func TestIdle(t *testing.T) {
	_, done := serveHere(t, t.Context(), time.Millisecond)
	if err := <-done; err != nil {
		t.Error("a holder that nobody uses:", err)
	}

	socket, done := serveHere(t, t.Context(), 300*time.Millisecond)
	c, err := dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put("x", newFile(t, "x")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	time.Sleep(time.Second)
	if c, err = dial(socket); err != nil {
		t.Fatal("a holder that holds something is gone:", err)
	}
	if err := c.Drop("x"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if _, err := c.Names(); err != nil {
		t.Error("a holder with a client is gone:", err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	socket, done := serveHere(t, ctx, time.Hour)
	c, err := dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestOtherUser connects as another user, whom the socket's mode would let in.
func TestOtherUser(t *testing.T) {
	socket, _ := serveHere(t, t.Context(), time.Hour)
	if err := errors.Join(os.Chmod(filepath.Dir(socket), 0o755), os.Chmod(socket, 0o777)); err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		runtime.LockOSThread() // and end the thread, which has become another user's
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); e != 0 {
			got <- nil
			return
		}
		c, err := dial(socket)
		if err == nil {
			c.Close()
		}
		got <- err
	}()
	if err := <-got; !isNotRunning(err) {
		t.Error("another user:", err)
	}
	c, err := dial(socket)
	if err != nil {
		t.Fatal("the same user:", err)
	}
	c.Close()
}

// FuzzMessage sends a holder what no client does. It goes on serving others.
func FuzzMessage(f *testing.F) {
	for _, seed := range []string{"", "l", "lx", "px", "p", "gx", "dx", "d", "k", "p\x00", "g" + strings.Repeat("x", 2*maxMessage)} {
		f.Add([]byte(seed), byte(len(seed)%3))
	}
	socket, _ := serveHere(f, context.Background(), time.Hour)
	f.Fuzz(func(t *testing.T, b []byte, files byte) {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var rights []byte
		if n := int(files) % (maxFiles + 3); n > 0 {
			rights = unix.UnixRights(slices.Repeat([]int{0}, n)...)
		}
		if _, _, err := conn.WriteMsgUnix(b, rights, nil); err != nil {
			return // too long
		}
		conn.CloseWrite()
		if m, err := receive(conn); err == nil {
			closeAll(m.files)
		}
		c, err := dial(socket)
		if err != nil {
			t.Fatal("after it:", err)
		}
		defer c.Close()
		names, err := c.Names()
		for _, name := range names {
			err = errors.Join(err, checkName(name), c.Drop(name))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}
