// Command spate brings container images and models to many nodes at once and
// lets no unsigned byte in.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// impatience is how long after one signal another is meant to be heard.
const impatience = time.Second

func main() { os.Exit(run()) }

// run is main with its deferred calls done.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		// From now on a signal ends the process at once. Not sooner: wrappers
		// like timeout(1) send the first one twice.
		time.Sleep(impatience)
		stop()
	}()
	return execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := newApp(stdout, stderr)
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	return a.out.Fail(err)
}
