package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// ModelOptions are how Synthesize makes a model. The zero value is usable.
type ModelOptions struct {
	Shards int    // 0 is one for each 4 MiB of the model, 8 at most
	Seed   uint64 // of the weights
}

// Synthesize writes a model into dir, which must be absent or empty, as Hugging
// Face lays one out: Qwen2.5-72B scaled down to size bytes within 3 percent,
// 1 MiB or more, in bfloat16. The weights are drawn from N(0, 0.02), so they
// compress as badly as real ones. Size and seed determine each tensor's bytes;
// the number of shards only where they lie. On an error dir holds a part.
func Synthesize(ctx context.Context, dir string, size int64, o ModelOptions) error {
	if err := synthesize(ctx, dir, size, o); err != nil {
		return fmt.Errorf("synthesize model in %s: %w", dir, err)
	}
	return nil
}

func synthesize(ctx context.Context, dir string, size int64, o ModelOptions) error {
	if size < minSize {
		return fmt.Errorf("%d bytes are too few for a model; give %d or more", size, minSize)
	}
	if o.Shards == 0 {
		o.Shards = int(min(max(size>>22, 1), 8))
	}
	if o.Shards < 0 || o.Shards > 99999 {
		return fmt.Errorf("cannot make %d shards; give 1 to 99999", o.Shards)
	}
	d := fit(size)
	shards, err := split(d.tensors(), o.Shards)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return err
	} else if len(entries) > 0 {
		return fmt.Errorf("the directory is not empty")
	}
	if err := writeTexts(dir, d, shards); err != nil {
		return err
	}
	weights := quantiles()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i, ts := range shards {
		g.Go(func() error {
			return writeShard(ctx, filepath.Join(dir, shardName(i, len(shards))), ts, o.Seed, weights)
		})
	}
	return g.Wait()
}

func shardName(i, n int) string {
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, n)
}

// writeShard writes one safetensors file: the header's length, the header, the tensors.
func writeShard(ctx context.Context, path string, ts []tensor, seed uint64, weights *[1 << 16]uint16) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	header := safetensorsHeader(ts)
	binary.Write(w, binary.LittleEndian, uint64(len(header)))
	w.Write(header)
	buf := make([]byte, 1<<20)
	for _, t := range ts {
		random := rand.NewPCG(seed, t.seed)
		for left := t.bytes(); left > 0; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(left, int64(len(buf)))]
			draw(b, random, weights)
			if _, err := w.Write(b); err != nil {
				return err
			}
			left -= int64(len(b))
		}
	}
	return w.Flush()
}

// safetensorsHeader returns the JSON header with its keys sorted, padded so
// that the tensors begin at a multiple of 8.
func safetensorsHeader(ts []tensor) []byte {
	type entry struct {
		Dtype   string   `json:"dtype"`
		Shape   []int64  `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var begin int64
	for _, t := range ts {
		end := begin + t.bytes()
		header[t.name] = entry{"BF16", t.shape, [2]int64{begin, end}}
		begin = end
	}
	b, _ := json.Marshal(header)
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	return b
}

// quantiles returns N(0, 0.02) cut into 65536 equally likely bfloat16 values.
func quantiles() *[1 << 16]uint16 {
	q := new([1 << 16]uint16)
	for i := range q {
		p := (float64(i) + 0.5) / float64(len(q))
		bits := math.Float32bits(float32(0.02 * math.Sqrt2 * math.Erfinv(2*p-1)))
		q[i] = uint16((bits + 0x7fff + bits>>16&1) >> 16) // to nearest, ties to even
	}
	return q
}

// draw fills b with weights; its length must be even.
func draw(b []byte, random *rand.PCG, weights *[1 << 16]uint16) {
	for ; len(b) >= 8; b = b[8:] {
		r := random.Uint64()
		binary.LittleEndian.PutUint64(b, uint64(weights[uint16(r)])|uint64(weights[uint16(r>>16)])<<16|
			uint64(weights[uint16(r>>32)])<<32|uint64(weights[r>>48])<<48)
	}
	if len(b) > 0 {
		for r := random.Uint64(); len(b) > 0; b, r = b[2:], r>>16 {
			binary.LittleEndian.PutUint16(b, weights[uint16(r)])
		}
	}
}
