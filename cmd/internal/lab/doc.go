// Package lab holds what an experiment needs around spate: a model to move
// (Synthesize), a reader that behaves like an inference engine and checks every
// byte (Load), the physical limit to compare with (Bound) and the processes
// that take part (Herd).
//
// It knows nothing of registries, meshes or mounts.
package lab
