// Package format knows the files of a model: what each is for, in which order
// engines read them, and where the tensors of safetensors and GGUF files lie.
package format

const (
	// MaxHeader is the largest header that the safetensors format allows, in bytes.
	MaxHeader = 100_000_000

	// MaxTensors bounds how many tensors a file may have: some ten times what the largest model has.
	MaxTensors = 1 << 20
)

// A Table is what a file of weights says at its head.
type Table struct {
	Header   int64             // bytes before the tensors' data
	Metadata map[string]string // of safetensors; GGUF's are not kept
	Tensors  []Tensor          // in the order of their bytes, of which no two share any
}

// A Tensor lies in the bytes [Begin, End) of its file.
type Tensor struct {
	Name       string
	DType      string  // as the format names it, such as "BF16"
	Shape      []int64 // the dimension along which neighbours are neighbours in the file comes last
	Begin, End int64
}

// Elements returns how many numbers t holds.
func (t Tensor) Elements() int64 {
	n := int64(1)
	for _, dim := range t.Shape {
		n *= dim
	}
	return n
}
