package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cmd/internal/lab"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"spate": main})
}

// TestScripts runs each command against real processes. The scripts are in
// testdata/script; what they can say beyond testscript is below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("COSIGN_PASSWORD", "")
			e.Setenv("HOME", e.WorkDir)
			// A script that fails in the middle leaves its mounts.
			e.Defer(func() { detachBelow(e.WorkDir) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":        exits,
			"freeaddr":     freeAddr,
			"waitfor":      waitFor,
			"waitmatch":    waitMatch,
			"keypair":      keyPair,
			"meshcert":     meshCert,
			"model":        makeModel,
			"flip":         flip,
			"samedir":      sameDir,
			"tmpfs":        tmpfs,
			"noprocess":    noProcess,
			"jsonfield":    jsonField,
			"atmost":       atMost,
			"waitopen":     waitOpen,
			"waitgone":     waitGone,
			"waitend":      waitEnd,
			"networks":     networks,
			"nonetwork":    noNetwork,
			"signmanifest": signManifest,
			"image":        makeImage,
			"platforms":    makePlatforms,
			"referrers":    countReferrers,
		},
	})
}

// exits CODE PROGRAM ARG... runs a program that has to end with CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s\n%s", code, want, ts.ReadFile("stderr"))
	}
}

// freeaddr VAR sets VAR to a loopback address that nothing listens on.
func freeAddr(ts *testscript.TestScript, neg bool, args []string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], ln.Addr().String())
	ts.Check(ln.Close())
}

// waitfor URL|GLOB waits until a URL answers or a path exists.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	ready := func() bool {
		what := args[0]
		if strings.HasPrefix(what, "http://") {
			resp, err := http.Get(what)
			if err != nil {
				return false
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		}
		paths, err := filepath.Glob(ts.MkAbs(what))
		ts.Check(err)
		return len(paths) > 0
	}
	for deadline := time.Now().Add(30 * time.Second); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not there after 30 s", args[0])
		}
	}
}

// waitmatch REGEXP PROGRAM ARG... runs a program again and again until a line of its output matches.
func waitMatch(ts *testscript.TestScript, neg bool, args []string) {
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no line matches %s after a minute: %v\n%s", args[0], err, ts.ReadFile("stdout"))
		}
	}
}

// keypair NAME makes NAME.key and NAME.pub, without a password.
func keyPair(ts *testscript.TestScript, neg bool, args []string) {
	private, public, err := cosign.GenerateKeyPair(nil)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), private, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), public, 0o644))
}

// meshcert NAME... makes one CA and a directory NAME with an identity for each; NAME=DURATION says how long it is valid.
func meshCert(ts *testscript.TestScript, neg bool, args []string) {
	ca, err := identity.NewCA("test mesh", time.Hour)
	ts.Check(err)
	for _, arg := range args {
		name, text, given := strings.Cut(arg, "=")
		life := time.Hour
		if given {
			life, err = time.ParseDuration(text)
			ts.Check(err)
		}
		ts.Check(ca.Issue(ts.MkAbs(name), name, life))
	}
}

// model DIR BYTES makes a model.
func makeModel(ts *testscript.TestScript, neg bool, args []string) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(lab.Synthesize(context.Background(), ts.MkAbs(args[0]), size, lab.ModelOptions{}))
}

// flip GLOB OFFSET TEXT changes one bit, in place, of the only file that GLOB matches and that contains TEXT.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	paths, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	paths = slices.DeleteFunc(paths, func(path string) bool {
		b, err := os.ReadFile(path)
		ts.Check(err)
		return !bytes.Contains(b, []byte(args[2]))
	})
	if len(paths) != 1 {
		ts.Fatalf("%s with %q matches %v", args[0], args[2], paths)
	}
	off, err := strconv.Atoi(args[1])
	ts.Check(err)
	b, err := os.ReadFile(paths[0])
	ts.Check(err)
	b[off] ^= 1
	ts.Check(os.WriteFile(paths[0], b, 0o600))
}

// samedir A B fails unless every file of A is in B with the same bytes, and no other.
func sameDir(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("diff", "-r", ts.MkAbs(args[0]), ts.MkAbs(args[1])))
}

// jsonfield VAR FIELD sets VAR to a field of the JSON object on standard output.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	var v map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	ts.Setenv(args[0], fmt.Sprint(v[args[1]]))
}

// atmost MAX FIELD fails when a number of the JSON object on standard output,
// or one in each element of a list as in nodes.cpu_s, is larger than MAX or not there.
func atMost(ts *testscript.TestScript, neg bool, args []string) {
	limit, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	var v map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	objects, field := []any{v}, args[1]
	if list, rest, ok := strings.Cut(field, "."); ok {
		objects, _ = v[list].([]any)
		field = rest
	}
	if len(objects) == 0 {
		ts.Fatalf("there is no %s", args[1])
	}
	for _, o := range objects {
		n, ok := o.(map[string]any)[field].(float64)
		if !ok || n > limit {
			ts.Fatalf("%s is %v, at most %v is right", args[1], n, limit)
		}
	}
}

// waitopen FILE waits until a process has FILE open.
func waitOpen(ts *testscript.TestScript, neg bool, args []string) {
	want := ts.MkAbs(args[0])
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		links, err := filepath.Glob("/proc/[0-9]*/fd/*")
		ts.Check(err)
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == want {
				return
			}
		}
	}
	ts.Fatalf("nobody has %s open", want)
}

// waitgone GLOB waits until no path matches.
func waitGone(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		paths, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		if len(paths) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: still there after 30 s", paths)
		}
	}
}

// networks VAR TEXT sets VAR to the network namespaces of processes that have TEXT in their command line.
func networks(ts *testscript.TestScript, neg bool, args []string) {
	own, err := os.Readlink("/proc/self/ns/net")
	ts.Check(err)
	var found []string
	for _, dir := range processes(args[1]) {
		if to, err := os.Readlink(filepath.Join(dir, "ns", "net")); err == nil && to != own {
			found = append(found, to)
		}
	}
	if len(found) == 0 {
		ts.Fatalf("no process with %q is in another network namespace", args[1])
	}
	ts.Setenv(args[0], strings.Join(found, " "))
}

// nonetwork LIST waits until no process is in a network namespace of the list or holds one.
func noNetwork(ts *testscript.TestScript, neg bool, args []string) {
	list := strings.Fields(args[0])
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := ""
		for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
			links, err := filepath.Glob(pattern)
			ts.Check(err)
			for _, link := range links {
				if to, err := os.Readlink(link); err == nil && slices.Contains(list, to) {
					left = link
				}
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s is of a network that should be gone", left)
		}
	}
}

// signmanifest REF KEY signs a manifest and nothing else, as cosign would.
func signManifest(ts *testscript.TestScript, neg bool, args []string) {
	ctx := context.Background()
	signer, err := cosign.NewSigner([]byte(ts.ReadFile(args[1])), func() ([]byte, error) { return nil, nil })
	ts.Check(err)
	repo, err := remote.Open(args[0], remote.Options{})
	ts.Check(err)
	desc, err := repo.Resolve(ctx, args[0])
	ts.Check(err)
	_, err = signing.Sign(ctx, repo, signer, desc)
	ts.Check(err)
}

// noprocess TEXT fails when a process has TEXT in its command line.
func noProcess(ts *testscript.TestScript, neg bool, args []string) {
	if dirs := processes(args[0]); len(dirs) > 0 {
		ts.Fatalf("%s is still there", dirs)
	}
}

// waitend TEXT waits until no process has TEXT in its command line.
func waitEnd(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		dirs := processes(args[0])
		if len(dirs) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: still there after 30 s", dirs)
		}
	}
}

// processes returns the directories in /proc of those that have text in their command line.
func processes(text string) (dirs []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is a good one
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(text)) {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	return dirs
}

// tmpfs DIR BYTES makes a file system with little room at DIR.
func tmpfs(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
}

// detachBelow takes away whatever is still mounted below dir.
func detachBelow(dir string) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir) {
			if err := unix.Unmount(f[1], unix.MNT_DETACH); err != nil {
				fmt.Fprintf(os.Stderr, "unmount %s: %v\n", f[1], err)
			}
		}
	}
}
