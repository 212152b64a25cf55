package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pollEvery = 20 * time.Millisecond
	tailBytes = 2 << 10
)

// A Process is a child that a Herd started. Its methods are safe for concurrent use.
type Process struct {
	name     string
	logPath  string
	logStart int64 // where this run's part of the log begins
	cmd      *exec.Cmd
	done     chan struct{} // closed when the process has ended and cmd.ProcessState is set
	expected atomic.Bool   // the end was asked for, or reported
	peak     atomic.Int64
	written  atomic.Int64
}

// Usage is what a process has used.
type Usage struct {
	PeakRSS int64         // bytes resident at most, mapped files included
	CPU     time.Duration // of all threads, user and system
	Written int64         // bytes that it gave the kernel to store, write_bytes of proc_pid_io(5)
}

// start starts c and returns once it runs.
func start(c Command, dir string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	logPath := filepath.Join(dir, c.Name+".log")
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{name: c.Name, logPath: logPath, logStart: info.Size(), cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the thread that forked
		// ends, so that thread stays for as long as the child does.
		runtime.LockOSThread()
		home, err := startIn(c.Network, cmd)
		if home { // else the thread dies with this goroutine
			defer runtime.UnlockOSThread()
		}
		started <- err
		if err == nil {
			p.reap()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// startIn starts cmd from the calling thread, to which the goroutine must be
// locked, in a network namespace, and reports whether the thread is back in its own.
func startIn(network *os.File, cmd *exec.Cmd) (home bool, err error) {
	if network == nil {
		return true, cmd.Start()
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, err
	}
	defer own.Close()
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter the network namespace: %w", err)
	}
	err = cmd.Start()
	return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil, err
}

// reap waits for the end. It kills what the process left of its group before
// the group's number can belong to another.
func (p *Process) reap() {
	for unix.Waitid(unix.P_PID, p.PID(), nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	p.written.Store(p.ioWritten())
	unix.Kill(-p.PID(), unix.SIGKILL)
	p.cmd.Wait()
	close(p.done)
}

// PID returns the process's number, which is also its group's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// LogPath returns the file that holds its standard output and error.
func (p *Process) LogPath() string { return p.logPath }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ready waits until check returns nil, asking every few milliseconds. It fails
// when ctx ends or the process does; the error then holds the end of the log.
func (p *Process) Ready(ctx context.Context, check func(ctx context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for ended := false; ; {
		err := check(ctx)
		switch {
		case err == nil:
			return nil
		case ended:
			p.expected.Store(true)
			return p.ended("before it was ready")
		}
		select {
		case <-p.done:
			ended = true // look once more: it may have got there first
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %v)%s", p.name, context.Cause(ctx), err, p.tail())
		case <-tick.C:
		}
	}
}

// Line waits as Ready does for the first line of this run's log that contains
// text, and returns it without its newline.
func (p *Process) Line(ctx context.Context, text string) (line string, err error) {
	err = p.Ready(ctx, func(context.Context) error {
		log, err := p.log(0)
		if err != nil {
			return err
		}
		for l := range bytes.Lines(log) {
			if l, whole := bytes.CutSuffix(l, []byte("\n")); whole && bytes.Contains(l, []byte(text)) {
				line = string(l)
				return nil
			}
		}
		return fmt.Errorf("its log has no line with %q", text)
	})
	return line, err
}

// Wait waits for the process to end by itself. The error is nil when it exited
// with 0; otherwise it holds the end of the log and wraps an *exec.ExitError.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", p.name, context.Cause(ctx))
	}
	p.expected.Store(true)
	if p.cmd.ProcessState.Success() {
		return nil
	}
	return p.ended("early")
}

// Stop asks the process to end with SIGTERM and waits; after grace it kills it.
// It is an error when the process had to be killed, when it failed while
// ending, or when it had failed before without Ready or Wait having told.
func (p *Process) Stop(grace time.Duration) error {
	p.sample()
	if p.expected.Swap(true) {
		<-p.done
		return nil
	}
	when := "while stopping"
	if p.cmd.Process.Signal(syscall.SIGTERM) != nil {
		when = "before it was stopped"
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("stop %s: it did not end within %v of SIGTERM and was killed%s", p.name, grace, p.tail())
	}
	status, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Exited() && status.ExitStatus() == 0 || status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return p.ended(when)
}

// Kill ends the process with SIGKILL, which it cannot notice, and waits.
func (p *Process) Kill() {
	p.sample()
	p.expected.Store(true)
	p.cmd.Process.Kill()
	<-p.done
}

// Usage returns what the process has used until now, or until its end. A
// process that ended before anyone asked, stopped or killed it has only the
// kernel's account of its peak, which is at least that of the process that started it.
func (p *Process) Usage() Usage {
	select {
	case <-p.done:
		state := p.cmd.ProcessState
		u := Usage{PeakRSS: p.peak.Load(), CPU: state.UserTime() + state.SystemTime(), Written: p.written.Load()}
		if r, ok := state.SysUsage().(*syscall.Rusage); ok && u.PeakRSS == 0 {
			u.PeakRSS = r.Maxrss << 10
		}
		return u
	default:
		p.sample()
		return Usage{PeakRSS: p.peak.Load(), CPU: p.cpu(), Written: p.ioWritten()}
	}
}

// ioWritten returns the bytes stored so far, 0 when the process is gone.
func (p *Process) ioWritten() int64 {
	io, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.PID()))
	_, rest, _ := bytes.Cut(io, []byte("\nwrite_bytes: "))
	text, _, _ := bytes.Cut(rest, []byte("\n"))
	n, _ := strconv.ParseInt(string(text), 10, 64)
	return n
}

// sample notes the peak so far, which the kernel forgets when the process ends.
func (p *Process) sample() {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	_, rest, _ := bytes.Cut(status, []byte("\nVmHWM:"))
	fields := bytes.Fields(rest)
	select {
	case <-p.done: // the number may be another's by now
		return
	default:
	}
	if len(fields) > 0 {
		kib, _ := strconv.ParseInt(string(fields[0]), 10, 64)
		p.peak.Store(max(p.peak.Load(), kib<<10))
	}
}

// cpu returns the time used so far, 0 when the process has ended.
func (p *Process) cpu() time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	// pid (name) state …: times are fields 14 and 15, in hundredths of a second.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
	system, _ := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// ended says how the process ended, which it must have.
func (p *Process) ended(when string) error {
	return fmt.Errorf("%s ended %s: %w%s", p.name, when, &exec.ExitError{ProcessState: p.cmd.ProcessState}, p.tail())
}

// tail returns the end of this run's log for an error.
func (p *Process) tail() string {
	log, err := p.log(tailBytes)
	log = bytes.TrimSpace(log)
	switch {
	case err != nil:
		return fmt.Sprintf("; its log cannot be read: %v", err)
	case len(log) == 0:
		return "; its log is empty"
	}
	return fmt.Sprintf("; its log %s ends with:\n%s", p.logPath, log)
}

// log returns this run's part of the log, of which the last limit bytes, in
// whole lines, when limit is not 0.
func (p *Process) log(limit int64) ([]byte, error) {
	f, err := os.Open(p.logPath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := p.logStart
	cut := limit > 0 && info.Size()-from > limit
	if cut {
		from = info.Size() - limit
	}
	log, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if cut {
		_, log, _ = bytes.Cut(log, []byte("\n"))
	}
	return log, err
}
