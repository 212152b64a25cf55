package main

import (
	"errors"
	"slices"

	"github.com/spf13/pflag"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/prefetch/orders"
)

// orderFull is how users say that they want all bytes, which orders need not.
const orderFull = "full"

// planFlags say what of the references nodes fetch, how, and when.
type planFlags struct {
	order   string
	plan    orders.Plan
	rate    ui.Rate
	between string
}

func (p *planFlags) register(f *pflag.FlagSet) {
	f.StringVar(&p.order, "order", "", "what is fetched, in which `order`: full (every byte), model or trace; model when a rank is given, else full")
	f.IntVar(&p.plan.TP, "tp", 0, "`how many` ranks of tensor parallelism there are; 0 is 1")
	f.IntVar(&p.plan.PP, "pp", 0, "`how many` ranks of pipeline parallelism there are; 0 is 1")
	f.IntVar(&p.plan.Rank, "rank", 0, "which of them the nodes are, a `number` from 0 to TP x PP - 1")
	f.Var(&p.rate, "rate", "how `fast` each node fetches for this order, at most; 0 is no limit")
	f.StringVar(&p.between, "between", "", "`hours` of the day in which nodes fetch, as 22:00-06:00, by their clocks; always when empty")
}

// into puts what the flags say into a request, which Check looks at.
func (p *planFlags) into(req *orders.Request, f *pflag.FlagSet) error {
	ranked := f.Changed("tp") || f.Changed("pp") || f.Changed("rank")
	switch {
	case p.order == orderFull && ranked:
		return errors.New("--order full has every byte, a rank (--tp, --pp, --rank) a part of a model")
	case p.order == "" && ranked:
		p.plan.Order = orders.OrderModel
	case p.order != orderFull:
		p.plan.Order = p.order
	}
	req.Plan, req.Rate, req.Between = p.plan, int64(p.rate), orders.Hours(p.between)
	slices.Sort(req.NodeNames)
	req.NodeNames = slices.Compact(req.NodeNames)
	return nil
}
