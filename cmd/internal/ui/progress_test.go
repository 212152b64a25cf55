package ui

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// work is an operation of two files and a step, with one failure.
func work(out *Output) {
	p := NewProgress(out, "pull m:1")
	defer p.Close()
	a, b, held := p.Task("a", 100<<20), p.Task("b", 50<<20), p.Task("held", 10<<20)
	step := p.Task("signature", 0)
	time.Sleep(time.Second)
	step.Done(nil)
	for range 10 {
		a.Add(10 << 20)
		time.Sleep(time.Second)
	}
	a.Done(nil)
	held.Done(nil)
	b.Add(20 << 20)
	b.Done(errors.New("peer gone\nretry later"))
	b.Done(nil) // only the first counts
}

func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stderr strings.Builder
		work(New(io.Discard, &stderr))
		want := `pull m:1: signature: started
pull m:1: signature: done in 1s
pull m:1: a: started, 100 MiB
pull m:1: 1 of 4 done, 50.0 MiB of 160 MiB, 10.0 MiB/s, 11s left
pull m:1: 1 of 4 done, 100 MiB of 160 MiB, 10.0 MiB/s, 6s left
pull m:1: a: done, 100 MiB in 10s, 10.0 MiB/s
pull m:1: held: started, 10.0 MiB
pull m:1: held: done, 10.0 MiB were in place
pull m:1: b: started, 50.0 MiB
pull m:1: b: failed: peer gone; retry later
pull m:1: 3 of 4 done, 1 failed, 120 MiB in 11s, 10.9 MiB/s
`
		if stderr.String() != want {
			t.Errorf("got\n%swant\n%s", &stderr, want)
		}
	})
}

func TestProgressJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stdout, stderr strings.Builder
		out := New(&stdout, &stderr)
		out.Format = JSON
		work(out)
		if stdout.Len() > 0 {
			t.Errorf("stdout has %q", &stdout)
		}
		var states []string
		var last event
		for line := range strings.Lines(stderr.String()) {
			last = event{}
			if err := json.Unmarshal([]byte(line), &last); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			states = append(states, last.Task+":"+last.State)
		}
		want := "signature:started signature:done a:started :moving :moving a:done held:started held:done b:started b:failed :ended"
		if got := strings.Join(states, " "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if last.Finished != 4 || last.Failed != 1 || last.Bytes != 120<<20 || last.Total != last.Bytes || last.Seconds != 11 {
			t.Errorf("%+v", last)
		}
	})
}

// TestProgressBound: what is known of the least time is told beside the forecast.
func TestProgressBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stderr strings.Builder
		p := NewProgress(New(io.Discard, &stderr), "prefetch")
		task := p.Task("node-1", 100<<20)
		p.Bound(4 * time.Second)
		time.Sleep(summaryEvery)
		task.Add(50 << 20)
		if want := "prefetch: 0 of 1 done, 50.0 MiB of 100 MiB, 10.0 MiB/s, 5s left, 4s at best\n"; !strings.HasSuffix(stderr.String(), want) {
			t.Errorf("%q does not end with %q", &stderr, want)
		}
		task.Done(nil)
		p.Close()
	})
}

func TestProgressOfNothingIsSilent(t *testing.T) {
	var stderr strings.Builder
	NewProgress(New(io.Discard, &stderr), "pull m:1").Close()
	if stderr.Len() != 0 {
		t.Errorf("%q", &stderr)
	}
}

func TestProgressConcurrently(t *testing.T) {
	const workers, adds = 8, 1000
	var stderr strings.Builder
	out := New(io.Discard, &stderr)
	p := NewProgress(out, "push")
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			task := p.Task("file", adds)
			for range adds {
				task.Add(1)
			}
			task.Done(nil)
			io.WriteString(out.Messages(), "a remark\n")
		})
	}
	wg.Wait()
	p.Close()
	lines := strings.Split(stderr.String(), "\n")
	if got := lines[len(lines)-2]; !strings.HasPrefix(got, "push: 8 of 8 done, 7.81 KiB in ") {
		t.Errorf("the last line is %q", got)
	}
	if n := strings.Count(stderr.String(), "a remark\n"); n != workers {
		t.Errorf("%d of %d remarks arrived", n, workers)
	}
}
