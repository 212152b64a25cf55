// Package lab holds what an experiment needs around spate: a model to move
// (Synthesize), a reader that behaves like an inference engine and checks every
// byte (Load), the physical limit to compare with (Bound), the processes that
// take part (Herd), their keys (Keys) and a place that goes away after any end
// (Scratch).
//
// It knows nothing of registries or mounts.
package lab
