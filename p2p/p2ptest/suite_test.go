package p2ptest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p"
	"github.com/spate-project/spate/p2p/p2ptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHolding(t *testing.T) {
	p2ptest.TestHolding(t, func(_ *testing.T, tree *piece.Tree) p2p.Holding { return p2ptest.NewHolding(tree) })
}
