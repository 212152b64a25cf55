package storm

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestChart(t *testing.T) {
	r := result(func(*Options) {})
	r.add("lone", sample(10))
	r.add("direct", sample(39, 39.5, 39.9, 40))
	for range 2 {
		r.add("mesh", sample(10.4, 10.6, 10.7, 11))
	}
	prefetched := sample(0.4, 0.5, 0.5, 0.6)
	prefetched.Prefetch, prefetched.CPUBusy = 10.9, 0.85
	r.add("prefetched", prefetched)
	r.summarize()
	var got bytes.Buffer
	if err := r.Chart(&got); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(got.Bytes())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
	golden := filepath.Join("testdata", "chart.svg")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the chart differs from %s; if it should, look at it and run with -update:\n%s", golden, got.Bytes())
	}
}

func TestTickStep(t *testing.T) {
	for end, want := range map[float64]float64{0.9: 0.1, 1: 0.1, 1.1: 0.2, 4.9: 0.5, 10: 1, 24: 5, 60: 10, 372: 50} {
		if got := tickStep(end); math.Abs(got-want) > 1e-9 {
			t.Errorf("steps of %v up to %v, want %v", got, end, want)
		}
	}
}
