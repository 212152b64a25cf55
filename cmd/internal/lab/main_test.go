package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
)

// The test binary is also the child process of the tests: children maps what
// childEnv may say to what such a child does.
const childEnv = "LAB_TEST_CHILD"

var children = map[string]func(args []string) error{
	"obedient": func([]string) error {
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		fmt.Println("ready")
		<-terminated
		fmt.Println("bye")
		return nil
	},
	"stubborn": func([]string) error {
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	},
	"broken": func([]string) error {
		for i := range 1000 {
			fmt.Println("line", i)
		}
		return fmt.Errorf("no space left on device")
	},
	"sour": func([]string) error {
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		fmt.Println("ready")
		<-terminated
		return fmt.Errorf("cannot unmount")
	},
	"done": func([]string) error { return nil },
	// hello writes to both of its outputs and ends.
	"hello": func(args []string) error {
		fmt.Println("hello", args)
		fmt.Fprintln(os.Stderr, "a remark")
		return nil
	},
	"network": func([]string) error {
		ns, err := os.Readlink("/proc/self/ns/net")
		fmt.Println(ns)
		return err
	},
	"sweep": func(args []string) error { return Sweep(args[0], os.Stdin) },
	// scratch makes a directory that a sweeper waits for, fills it, and stays.
	"scratch": func([]string) error {
		os.Setenv(childEnv, "sweep")
		s, err := NewScratch("lab-")
		if err != nil {
			return err
		}
		if err := fill(s.Dir); err != nil {
			return err
		}
		fmt.Println("scratch", s.Dir)
		select {}
	},
	// parent starts an obedient child in a herd of its own, in the directory args[0].
	"parent": func(args []string) error {
		h := NewHerd(context.Background(), args[0])
		p, err := h.Start(Command{Name: "grandchild", Env: []string{childEnv + "=obedient"}})
		if err != nil {
			return err
		}
		fmt.Println("grandchild", p.PID())
		select {}
	},
	// litter leaves a child in its group and ends.
	"litter": func([]string) error {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), childEnv+"=stubborn")
		if err := c.Start(); err != nil {
			return err
		}
		fmt.Println("grandchild", c.Process.Pid)
		return nil
	},
	// hungry touches 64 MiB and uses 200 ms of CPU.
	"hungry": func([]string) error {
		b := make([]byte, 64<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		for used := (syscall.Rusage{}); time.Duration(used.Utime.Nano()) < 200*time.Millisecond; {
			syscall.Getrusage(syscall.RUSAGE_SELF, &used)
		}
		fmt.Println("fed")
		time.Sleep(time.Hour)
		runtime.KeepAlive(b)
		return nil
	},
	// failing mount shows the directory args[1] at args[0], without the last
	// quarter of each file that has more than 1 MiB: reading there is EIO.
	"failing mount": func(args []string) error {
		root, err := fs.NewLoopbackRoot(args[1])
		if err != nil {
			return err
		}
		top := &failingNode{root.(*fs.LoopbackNode)}
		top.RootData.RootNode = top
		server, err := fs.Mount(args[0], top, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true}})
		if err != nil {
			return err
		}
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		fmt.Println("mounted")
		<-terminated
		return server.Unmount()
	},
	// load loads args[0] with the source args[1] and stays.
	"load": func(args []string) error {
		r, err := Load(context.Background(), args[0], args[1], LoadOptions{})
		if err != nil {
			return err
		}
		fmt.Println("loaded", r.Bytes)
		time.Sleep(time.Hour)
		return nil
	},
}

type failingNode struct{ *fs.LoopbackNode }

func (n *failingNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &failingNode{ops.(*fs.LoopbackNode)}
}

func (n *failingNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, _, errno := n.LoopbackNode.Open(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	var out fuse.AttrOut
	if errno := n.Getattr(ctx, f, &out); errno != 0 {
		return nil, 0, errno
	}
	return &failingFile{f.(fs.FileReader), int64(out.Size)}, 0, 0
}

type failingFile struct {
	fs.FileReader
	size int64
}

func (f *failingFile) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if f.size > 1<<20 && off+int64(len(dest)) > f.size/4*3 {
		return nil, syscall.EIO
	}
	return f.FileReader.Read(ctx, dest, off)
}

func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv(childEnv)]; ok {
		if err := child(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
