// Package containerdtest runs real containerds for tests, each with its own
// root, state and sockets, and with what tests want of them: pulls through the
// transfer service and through CRI, containers, removal. It needs root and runc.
package containerdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshotter is the name under which a containerd knows the proxy snapshotter.
const Snapshotter = "spate"

// patience is how long anything may take that a test waits for.
const patience = 2 * time.Minute

// A Containerd is a running containerd, or one that can be started again.
type Containerd struct {
	t       testing.TB
	bin     Binaries
	dir     string
	address string
	cmd     *exec.Cmd
}

// Start runs a containerd with the snapshotter that listens at the unix socket
// snapshotter, as a proxy plugin and CRI's default. Everything of it is gone when the test ends.
func Start(t testing.TB, bin Binaries, snapshotter string) *Containerd {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctrd") // sockets' paths are short
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{t: t, bin: bin, dir: dir, address: filepath.Join(dir, "c.sock")}
	t.Cleanup(c.remove)
	config := configV3
	if bin.old {
		config = configV2
	}
	config = strings.NewReplacer("DIR", dir, "PROXY", snapshotter, "NAME", Snapshotter).Replace(config)
	if err := os.WriteFile(c.config(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Start()
	return c
}

func (c *Containerd) config() string { return filepath.Join(c.dir, "config.toml") }

func (c *Containerd) log() string { return filepath.Join(c.dir, "log") }

// Address returns the path of the socket of containerd and of its CRI.
func (c *Containerd) Address() string { return c.address }

// Start runs containerd again after Kill.
func (c *Containerd) Start() {
	c.t.Helper()
	log, err := os.OpenFile(c.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(c.bin.dir, "containerd"), "--config", c.config())
	c.cmd.Env = c.env()
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.Until("containerd answers", func() error {
		_, err := c.Try("version")
		return err
	})
}

// Verify has containerd ask a program, a script's text, whether an image may be pulled.
func (c *Containerd) Verify(script string) {
	c.t.Helper()
	dir := filepath.Join(c.dir, "verifiers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "verifier"), []byte(script), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

// Kill kills containerd with SIGKILL. Containers run on.
func (c *Containerd) Kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

func (c *Containerd) env() []string {
	return append(os.Environ(), "PATH="+c.bin.dir+":"+os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none")
}

// Ctr runs ctr in the namespace of CRI and returns its output.
func (c *Containerd) Ctr(args ...string) string {
	c.t.Helper()
	out, err := c.Try(args...)
	if err != nil {
		c.t.Fatalf("%v\ncontainerd:\n%s", err, c.tail())
	}
	return out
}

// Try is Ctr for what may fail.
func (c *Containerd) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin.dir, "ctr"), append([]string{"-a", c.address, "-n", "k8s.io"}, args...)...)
	cmd.Env = c.env()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), nil
}

// Pull pulls an image with ctr, through the transfer service, from a registry without TLS.
func (c *Containerd) Pull(image string) {
	c.t.Helper()
	c.Ctr("image", "pull", "--plain-http", "--snapshotter", Snapshotter, image)
}

// Run runs a container on a pulled image to its end and returns what it wrote.
func (c *Containerd) Run(image, id string, args ...string) string {
	c.t.Helper()
	return c.Ctr(append([]string{"run", "--rm", "--snapshotter", Snapshotter, image, id}, args...)...)
}

// RunDetached starts a container, which Ctr("task", "exec", ...) enters.
func (c *Containerd) RunDetached(image, id string, args ...string) {
	c.t.Helper()
	c.Ctr(append([]string{"run", "-d", "--snapshotter", Snapshotter, image, id}, args...)...)
}

// Exec runs a command in a container and returns what it wrote.
func (c *Containerd) Exec(id string, args ...string) string {
	c.t.Helper()
	return c.Ctr(append([]string{"task", "exec", "--exec-id", "e" + strconv.FormatInt(time.Now().UnixNano(), 36), id}, args...)...)
}

// RemoveContainer kills and removes a detached container.
func (c *Containerd) RemoveContainer(id string) {
	c.t.Helper()
	c.Ctr("task", "rm", "-f", id)
	c.Ctr("container", "rm", id)
}

// Until waits until check returns nil. The test fails if it never does.
func (c *Containerd) Until(what string, check func() error) {
	c.t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < patience; time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	c.t.Fatalf("wait until %s: %v\ncontainerd:\n%s", what, err, c.tail())
}

// tail returns the end of what containerd wrote.
func (c *Containerd) tail() []byte {
	const most = 8 << 10
	log, _ := os.ReadFile(c.log())
	return log[max(0, len(log)-most):]
}

// remove stops all that the containerd started and removes its files.
func (c *Containerd) remove() {
	// The shims outlive containerd, and the containers their shims.
	if out, err := c.Try("task", "ls", "-q"); err == nil {
		for _, id := range strings.Fields(out) {
			if _, err := c.Try("task", "rm", "-f", id); err != nil {
				c.t.Log(err)
			}
		}
	}
	c.Kill()
	pids, err := c.shims()
	for _, pid := range pids {
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	}
	if err := errors.Join(err, unmountBelow(c.dir), os.RemoveAll(c.dir)); err != nil {
		c.t.Error(err)
	}
}

// shims returns the processes that were started for this containerd's socket.
func (c *Containerd) shims() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil { // it has ended
			continue
		}
		args := strings.Split(string(line), "\x00")
		if strings.Contains(args[0], "containerd-shim") && slices.Contains(args, c.address) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// unmountBelow unmounts all that is mounted under dir, the last first.
func unmountBelow(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(info), "\n")
	for _, line := range slices.Backward(lines) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if e := unix.Unmount(fields[4], unix.MNT_DETACH); e != nil && e != unix.EINVAL {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", fields[4], e))
		}
	}
	return err
}
