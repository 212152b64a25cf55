package mount

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache/mount/holder"
)

// A machine has a holder, one agent at a time, and the mount.
type machine struct {
	t            *testing.T
	socket, data string
	dir          string // the mount
	holder       int    // its process
	agent        *exec.Cmd
	out          *bufio.Scanner
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, socket: filepath.Join(t.TempDir(), "s"), data: t.TempDir(), dir: t.TempDir()}
	t.Cleanup(func() {
		m.kill()
		m.killHolder()
		unix.Unmount(m.dir, unix.MNT_DETACH)
	})
	m.startHolder()
	return m
}

// startHolder starts a holder that the test's end kills.
func (m *machine) startHolder() {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	pidFile := filepath.Join(m.data, "pid")
	script := "echo $$ > " + pidFile + "; exec env " + childEnv + "=hold " + self + " -test.run=^$"
	c, err := holder.Start(m.socket, "/bin/sh", "-c", script)
	if err != nil {
		m.t.Fatal(err)
	}
	c.Close()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		m.t.Fatal(err)
	}
	if m.holder, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) killHolder() {
	if m.holder != 0 {
		unix.Kill(m.holder, unix.SIGKILL)
		m.holder = 0
	}
}

// start starts an agent and returns what it did about the mount.
func (m *machine) start() string {
	m.t.Helper()
	m.agent, m.out = startChild(m.t, "agent", m.socket, m.data, m.dir)
	m.out.Scan()
	return m.out.Text()
}

func (m *machine) mustStart(want string) {
	m.t.Helper()
	if got := m.start(); !strings.HasPrefix(got, want) {
		m.t.Fatalf("the agent says %q, not %q", got, want)
	}
}

// kill kills the agent, and anybody in its process group.
func (m *machine) kill() {
	if m.agent != nil {
		m.agent.Process.Kill()
		m.agent.Wait()
	}
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write(name string, b []byte) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.data, name), b, 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// A crowd is the readers' process.
type crowd struct {
	t    *testing.T
	stop io.Closer
	out  *bufio.Scanner
}

func (m *machine) readers() *crowd {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"=readers\n"+m.dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		m.kill()
		m.killHolder() // else what reads cannot be killed
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &crowd{m.t, in, bufio.NewScanner(out)}
}

// more waits until the crowd has read 500 times more, or says "read" when that is the end.
func (c *crowd) more(want string) {
	c.t.Helper()
	if c.out.Scan(); !strings.HasPrefix(c.out.Text(), want) {
		c.t.Fatalf("a reader says %q", c.out.Text())
	}
}

func (c *crowd) end() {
	c.t.Helper()
	c.stop.Close()
	for c.out.Scan() && strings.HasPrefix(c.out.Text(), "reads ") {
	}
	if !strings.HasPrefix(c.out.Text(), "read ") {
		c.t.Fatalf("a reader says %q", c.out.Text())
	}
	c.t.Log(c.out.Text(), "times")
}
