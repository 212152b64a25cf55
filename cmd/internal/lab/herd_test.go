package lab

import (
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
)

// newHerd returns a herd that is closed at the end of the test, if it was not before.
func newHerd(t *testing.T) *Herd {
	t.Helper()
	h := NewHerd(t.Context(), t.TempDir())
	t.Cleanup(func() { h.Close() })
	return h
}

func startChild(t *testing.T, h *Herd, name, child string, args ...string) *Process {
	t.Helper()
	p, err := h.Start(Command{Name: name, Args: args, Env: []string{childEnv + "=" + child}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func line(t *testing.T, p *Process, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := p.Line(ctx, text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// gone waits until no process has the number that ends the line.
func gone(t *testing.T, line string) {
	t.Helper()
	fields := strings.Fields(line)
	pid, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") { // dead; its new parent may be slow to reap
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("process %d is still there", pid)
		}
		time.Sleep(pollEvery)
	}
}

func TestHerdClosesInReverseOrder(t *testing.T) {
	h := newHerd(t)
	var order []string
	note := func(s string) func() error {
		return func() error { order = append(order, s); return nil }
	}
	h.Defer(note("directory"))
	p := startChild(t, h, "node", "obedient")
	line(t, p, "ready")
	h.Defer(func() error {
		select {
		case <-p.Done():
			t.Error("the process ended before what was deferred after its start was undone")
		default:
		}
		return note("mount")()
	})
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	<-p.Done()
	if log, _ := os.ReadFile(p.LogPath()); !strings.HasSuffix(string(log), "bye\n") {
		t.Errorf("the process could not say goodbye: %q", log)
	}
	if want := []string{"mount", "directory"}; !slices.Equal(order, want) {
		t.Errorf("undone in order %q, want %q", order, want)
	}

	h.Defer(note("late"))
	if order[len(order)-1] != "late" {
		t.Error("what is deferred to a closed herd is not undone")
	}
	if _, err := h.Start(Command{Name: "late"}); err == nil {
		t.Error("a closed herd starts a process")
	}
}

func TestHerdClosesWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	h := NewHerd(ctx, t.TempDir())
	undone := make(chan struct{})
	h.Defer(func() error { close(undone); return errors.New("busy") })
	p := startChild(t, h, "node", "obedient")
	line(t, p, "ready")
	interrupted := errors.New("interrupted")
	cancel(interrupted)
	<-p.Done()
	<-undone
	if err := h.Close(); err == nil || err.Error() != "busy" {
		t.Errorf("Close: %v, want what went wrong while the context ended", err)
	}
	err := p.Ready(ctx, func(context.Context) error { return errors.New("not yet") })
	if err == nil {
		t.Error("a dead process became ready")
	}
}

func TestReadyEndsWithItsContext(t *testing.T) {
	h := newHerd(t)
	p := startChild(t, h, "node", "obedient")
	line(t, p, "ready")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := p.Ready(ctx, func(context.Context) error {
		cancel(errors.New("interrupted"))
		return errors.New("connection refused")
	})
	if err == nil || !strings.Contains(err.Error(), "wait for node: interrupted (last: connection refused)") {
		t.Errorf("got %v", err)
	}
}

func TestEarlyDeathTellsTheLog(t *testing.T) {
	h := newHerd(t)
	p := startChild(t, h, "node-1", "broken")
	_, err := p.Line(t.Context(), "listening on")
	if err == nil {
		t.Fatal("a dead process became ready")
	}
	got := err.Error()
	for _, want := range []string{"node-1 ended before it was ready: exit status 1", p.LogPath(), "line 999\nno space left on device"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in: %s", want, got)
		}
	}
	if len(got) > 2*tailBytes {
		t.Errorf("the error has %d bytes: the whole log?", len(got))
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close tells again what Line told: %v", err)
	}
}

func TestUnnoticedDeathIsTold(t *testing.T) {
	h := newHerd(t)
	p := startChild(t, h, "node-1", "broken")
	<-p.Done()
	if err := h.Close(); err == nil || !strings.Contains(err.Error(), "node-1 ended before it was stopped: exit status 1") {
		t.Errorf("Close: %v", err)
	}
}

func TestWait(t *testing.T) {
	h := newHerd(t)
	if err := startChild(t, h, "push", "done").Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := startChild(t, h, "push", "broken").Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Wait: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := startChild(t, h, "node", "obedient").Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
}

func TestOutput(t *testing.T) {
	h := newHerd(t)
	command := func(child string, args ...string) Command {
		return Command{Name: child, Args: args, Env: []string{childEnv + "=" + child}}
	}
	if out, err := h.Output(t.Context(), command("hello", "you")); err != nil || string(out) != "hello [you]\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err := h.Output(t.Context(), command("broken"))
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Output: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Output(ctx, command("stubborn")); !errors.Is(err, context.Canceled) {
		t.Errorf("Output: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestNetwork(t *testing.T) {
	elsewhere := exec.Command("/proc/self/exe")
	elsewhere.Env = append(os.Environ(), childEnv+"=stubborn")
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		elsewhere.Process.Kill()
		elsewhere.Wait()
	})
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", elsewhere.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	h := newHerd(t)
	for _, tt := range []struct {
		network *os.File
		want    string
	}{{network, network.Name()}, {nil, "/proc/self/ns/net"}} {
		want, err := os.Readlink(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		out, err := h.Output(t.Context(), Command{Name: "network", Env: []string{childEnv + "=network"}, Network: tt.network})
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("it ran in %s (%v), want %s", got, err, want)
		}
	}
	if _, err := h.Start(Command{Name: "nowhere", Network: os.Stdin}); err == nil {
		t.Error("a process runs in what is no namespace")
	}
}

func TestStop(t *testing.T) {
	tests := []struct {
		child string
		grace time.Duration
		want  string // in the error; none when empty
	}{
		{"obedient", time.Minute, ""},
		{"hungry", time.Minute, ""}, // dies of SIGTERM
		{"stubborn", 10 * time.Millisecond, "did not end within 10ms of SIGTERM and was killed"},
		{"sour", time.Minute, "ended while stopping: exit status 1"},
	}
	for _, tt := range tests {
		h := newHerd(t)
		p := startChild(t, h, "node", tt.child)
		line(t, p, map[bool]string{true: "fed", false: "ready"}[tt.child == "hungry"])
		err := p.Stop(tt.grace)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.child, err, tt.want)
		}
		if err := h.Close(); err != nil {
			t.Errorf("%s: Close: %v", tt.child, err)
		}
	}
}

func TestKillAndStartAgain(t *testing.T) {
	h := newHerd(t)
	p := startChild(t, h, "registry", "stubborn")
	line(t, p, "ready")
	p.Kill()
	<-p.Done()
	again := startChild(t, h, "registry", "done")
	if err := again.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := again.Line(t.Context(), "ready"); err == nil {
		t.Error("a line of the run before was taken for this one's")
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestNothingOutlivesItsParent(t *testing.T) {
	h := newHerd(t)
	p := startChild(t, h, "parent", "parent", t.TempDir())
	grandchild := line(t, p, "grandchild ")
	p.Kill()
	gone(t, grandchild)
}

func TestNothingIsLeftOfAGroup(t *testing.T) {
	h := newHerd(t)
	p := startChild(t, h, "litter", "litter")
	grandchild := line(t, p, "grandchild ")
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(t, grandchild)
}

func TestUsage(t *testing.T) {
	ballast := make([]byte, 256<<20) // a parent much larger than its children
	for i := 0; i < len(ballast); i += 4096 {
		ballast[i] = 1
	}
	h := newHerd(t)
	p := startChild(t, h, "hungry", "hungry")
	line(t, p, "fed")
	check := func(when string) {
		t.Helper()
		u := p.Usage()
		if u.PeakRSS < 64<<20 || u.PeakRSS > 200<<20 {
			t.Errorf("%s: peak of %d bytes, want a little over 64 MiB", when, u.PeakRSS)
		}
		if u.Written > 1<<20 {
			t.Errorf("%s: %d bytes stored of a log that has none", when, u.Written)
		}
		if u.CPU < 150*time.Millisecond || u.CPU > time.Minute {
			t.Errorf("%s: %v of CPU", when, u.CPU)
		}
	}
	check("alive")
	p.Kill()
	check("killed")
	if ballast[0] != 1 {
		t.Error("the ballast is gone")
	}
}

func TestStartFails(t *testing.T) {
	h := NewHerd(t.Context(), filepath.Join(t.TempDir(), "absent"))
	defer h.Close()
	if _, err := h.Start(Command{Name: "node"}); err == nil || !strings.HasPrefix(err.Error(), "start node: ") {
		t.Errorf("got %v", err)
	}
}
