package torrent_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/identity"
	"github.com/spate-project/spate/p2p/link"
	"github.com/spate-project/spate/p2p/p2ptest"
	"github.com/spate-project/spate/p2p/torrent"
	"github.com/spate-project/spate/p2p/tracker"
)

const transferSize = 1 << 30

// transferRoles are what this binary does instead of tests when transferRole
// names one. Its value is the role and the directory, as "role directory".
const transferRole = "SPATE_TRANSFER"

var transferRoles = map[string]func(dir string) error{
	"send": transferSend,
	"mesh": transferMesh,
	"http": transferHTTP,
}

// BenchmarkTransfer moves 1 GiB between two processes over loopback, mutual TLS
// on both sides: by the mesh engine from cache to cache, and by net/http from a
// file to a file with the SHA-256 computed on the way. Nothing is shaped. The
// audit of the whole object, which waits for a quiet cache, is not in it. Of
// several runs it reports each way's cheapest, which was disturbed the least:
//
//	go test ./p2p/torrent -run '^$' -bench Transfer -benchtime 5x
func BenchmarkTransfer(b *testing.B) {
	dir := b.TempDir()
	ca := newCA(b)
	for _, name := range []string{"sender", "receiver"} {
		if err := ca.Issue(filepath.Join(dir, name), name, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	sender := startTransfer(b, "send", dir)
	var ready senderReady
	sender.read(b, &ready)
	best := map[string]transferCost{}
	for b.Loop() {
		for _, role := range []string{"http", "mesh"} {
			before := sender.usage(b)
			receiver := startTransfer(b, role, dir)
			var cost transferCost
			receiver.write(b, ready)
			receiver.read(b, &cost)
			receiver.stop()
			cost.Sender = sender.usage(b).CPU - before.CPU
			if had, ok := best[role]; !ok || cost.CPU+cost.Sender < had.CPU+had.Sender {
				best[role] = cost
			}
		}
	}
	const gib = transferSize / float64(1<<30)
	for role, c := range best {
		b.ReportMetric(transferSize/1e9/c.Seconds, role+"-GB/s")
		b.ReportMetric((c.CPU+c.Sender)/gib, role+"-cpu-s/GiB")
		b.ReportMetric(c.CPU/gib, role+"-receiver-cpu-s/GiB")
		b.ReportMetric(c.Sender/gib, role+"-sender-cpu-s/GiB")
		b.ReportMetric(float64(c.RSS)/(1<<20), role+"-peak-MiB")
	}
	b.ReportMetric((best["mesh"].CPU+best["mesh"].Sender)/(best["http"].CPU+best["http"].Sender), "cpu-ratio")
	b.ReportMetric(0, "ns/op")
}

// A transferCost is what a transfer took.
type transferCost struct {
	Seconds float64
	CPU     float64 // user and system seconds of the reporting process
	Sender  float64 // and of the other
	RSS     int64   // the reporting process's peak, bytes
}

// A senderReady says where the sender is and what it holds.
type senderReady struct {
	Object     piece.Object
	Layer      []byte
	Mesh, HTTP string
}

// A transferProcess is this binary in a role. It answers lines with lines and ends with its standard input.
type transferProcess struct {
	in   io.WriteCloser
	out  *json.Decoder
	stop func()
}

func startTransfer(b *testing.B, role, dir string) *transferProcess {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), transferRole+"="+role+" "+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &transferProcess{in: in, out: json.NewDecoder(out)}
	p.stop = sync.OnceFunc(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("the %s process: %v", role, err)
		}
	})
	b.Cleanup(p.stop)
	return p
}

func (p *transferProcess) read(b *testing.B, v any) {
	b.Helper()
	if err := p.out.Decode(v); err != nil {
		b.Fatal("a process said nothing:", err)
	}
}

func (p *transferProcess) write(b *testing.B, v any) {
	b.Helper()
	if err := json.NewEncoder(p.in).Encode(v); err != nil {
		b.Fatal(err)
	}
}

func (p *transferProcess) usage(b *testing.B) (c transferCost) {
	p.write(b, "usage")
	p.read(b, &c)
	return c
}

// usage returns what this process has used so far.
func usage() (c transferCost) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	c.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	c.RSS = r.Maxrss << 10
	return c
}

// transferSend holds an object and serves it both ways until its input ends.
func transferSend(dir string) error {
	id, err := identity.Load(filepath.Join(dir, "sender"))
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "object")
	data := p2ptest.Bytes(transferSize, 1)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return err
	}
	tree := p2ptest.Tree(data)
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	o, err := store.Open(tree, nil)
	if err != nil {
		return err
	}
	for i := range tree.Object().Pieces() {
		off, n := tree.Object().Span(i)
		v, err := tree.Verify(i, data[off:off+n])
		if err != nil {
			return err
		}
		if err := o.Put(v); err != nil {
			return err
		}
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		TLSConfig: id.Server(),
		Protocols: new(http.Protocols),
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) }),
	}
	server.Protocols.SetHTTP1(true)
	defer server.Close()
	go server.ServeTLS(plain, "", "")

	return withEngine(id, func(e *torrent.Engine) error {
		if _, err := e.Join(o); err != nil {
			return err
		}
		out := json.NewEncoder(os.Stdout)
		if err := out.Encode(senderReady{tree.Object(), tree.Layer(), e.Addr(), plain.Addr().String()}); err != nil {
			return err
		}
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			if err := out.Encode(usage()); err != nil {
				return err
			}
		}
		return nil
	})
}

// withEngine calls f with an engine that runs.
func withEngine(id *identity.Identity, f func(*torrent.Engine) error) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	e, err := torrent.New(torrent.Options{Identity: id, Listener: ln, Link: link.New(0, 0), Logger: quiet()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.Run(ctx) })
	defer running.Wait()
	defer cancel()
	return f(e)
}

// receive reads who sends and who this process is.
func receive(dir string) (from senderReady, id *identity.Identity, err error) {
	if err := json.NewDecoder(os.Stdin).Decode(&from); err != nil {
		return from, nil, err
	}
	id, err = identity.Load(filepath.Join(dir, "receiver"))
	return from, id, err
}

// transferMesh receives into a new cache.
func transferMesh(dir string) error {
	from, id, err := receive(dir)
	if err != nil {
		return err
	}
	tree, err := piece.NewTree(from.Object, from.Layer)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "received")
	defer os.RemoveAll(to)
	store, err := cache.Open(to, cache.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	o, err := store.Open(tree, nil)
	if err != nil {
		return err
	}
	return withEngine(id, func(e *torrent.Engine) error {
		return measured(func() error {
			s, err := e.Join(o)
			if err != nil {
				return err
			}
			s.AddPeers([]tracker.Peer{{Node: "sender", Addr: from.Mesh}})
			s.Want(0, from.Object.Pieces(), p2p.Fill)
			for i := range from.Object.Pieces() {
				if err := o.Wait(context.Background(), i); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// transferHTTP receives into a new file and compares its SHA-256.
func transferHTTP(dir string) error {
	from, id, err := receive(dir)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: id.Client("sender")}}
	defer client.CloseIdleConnections()
	to, err := os.Create(filepath.Join(dir, "received"))
	if err != nil {
		return err
	}
	defer os.Remove(to.Name())
	defer to.Close()
	return measured(func() error {
		resp, err := client.Get("https://" + from.HTTP)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(to, sum), resp.Body); err != nil {
			return err
		}
		if got := piece.Digest(sum.Sum(nil)); got != from.Object.Digest || resp.ProtoMajor != 1 {
			return fmt.Errorf("%s brought object %s by %s", resp.Status, got, resp.Proto)
		}
		return nil
	})
}

// measured says on standard output what f took.
func measured(f func() error) error {
	before, start := usage(), time.Now()
	if err := f(); err != nil {
		return err
	}
	cost := usage()
	cost.CPU -= before.CPU
	cost.Seconds = time.Since(start).Seconds()
	return json.NewEncoder(os.Stdout).Encode(cost)
}
