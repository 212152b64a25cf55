package mount

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/mount/holder"
)

// What must not run in the process that serves the mount runs in a child: this
// test program again, with a command in the environment.
const childEnv = "SPATE_MOUNT_TEST_CHILD"

func init() {
	if os.Getenv(childEnv) != "" {
		runtime.LockOSThread() // so that the parent can signal the thread that reads
	}
}

func TestMain(m *testing.M) {
	if command := os.Getenv(childEnv); command != "" {
		if err := child(strings.Split(command, "\n")); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func child(args []string) error {
	switch args[0] {
	case "read": // the whole file by read(2)
		b, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		fmt.Println(sum(b))
	case "mmap": // the whole file by page faults
		b, err := mapFile(args[1])
		if err != nil {
			return err
		}
		fmt.Println(sum(b))
	case "touch": // one byte by one page fault, without reading ahead, catching SIGUSR1
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGUSR1)
		b, err := mapFile(args[1])
		if err != nil {
			return err
		}
		if err := unix.Madvise(b, unix.MADV_RANDOM); err != nil {
			return err
		}
		at, _ := strconv.Atoi(args[2])
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		if _, err := unix.Write(int(w.Fd()), b[at:at+1]); err != nil { // the fault is within the call
			return err
		}
		got := make([]byte, 1)
		if _, err := r.Read(got); err != nil {
			return err
		}
		fmt.Println(got[0])
	case "ahead": // have the kernel read ahead, close the file, and live on
		f, err := os.Open(args[1])
		if err != nil {
			return err
		}
		if err := unix.Fadvise(int(f.Fd()), 0, testSize, unix.FADV_WILLNEED); err != nil {
			return err
		}
		f.Close()
		fmt.Println("closed")
		select {}
	case "serve": // a mount at args[2] from a cache in args[1], until killed
		store, err := cache.Open(args[1], cache.Options{})
		if err != nil {
			return err
		}
		data := content(1, testSize)
		src := &origin{data: data}
		if src.into, err = store.Open(tree(data), src); err != nil {
			return err
		}
		f, err := New([]Entry{{Path: "file", File: src.into}}, Options{})
		if err != nil {
			return err
		}
		if err := f.Mount(args[2]); err != nil {
			return err
		}
		fmt.Println("mounted")
		return f.Run(context.Background())
	case "hold":
		ln, err := holder.Inherited()
		if err != nil {
			return err
		}
		return holder.Serve(context.Background(), ln, time.Hour)
	case "agent":
		return agent(args[1], args[2], args[3])
	case "readers":
		return readers(args[1])
	}
	return nil
}

func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func startChild(t *testing.T, args ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(args, "\n"), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

// runChild returns the first line that the child printed.
func runChild(t *testing.T, args ...string) string {
	t.Helper()
	cmd, out := startChild(t, args...)
	out.Scan()
	line := out.Text()
	cmd.Wait()
	return line
}
