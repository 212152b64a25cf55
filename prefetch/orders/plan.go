package orders

import (
	"fmt"
	"time"

	"github.com/spate-project/spate/prefetch"
)

// The orders in which nodes may fetch what a Plan names.
const (
	OrderModel = "model" // that in which engines load a model (prefetch.Model)
	OrderTrace = "trace" // that in which a start read, which the newest trusted trace tells
)

// A Plan says which bytes of its references an order is about, and in which
// sequence nodes fetch them. The zero Plan is all bytes, object after object.
type Plan struct {
	// Order is one of the constants above. OrderModel is about all that
	// prefetch.Model plans, OrderTrace about what the trace names and no more.
	Order string `json:"order,omitempty"`

	// With OrderModel: which of TP x PP ranks, counted from 0, the nodes are; what
	// it does not need is left out. Zeros are a rank that needs everything.
	TP   int `json:"tp,omitempty"`
	PP   int `json:"pp,omitempty"`
	Rank int `json:"rank,omitempty"`
}

// Of returns the rank that p is for.
func (p Plan) Of() prefetch.Rank { return prefetch.Rank{TP: p.TP, PP: p.PP, Index: p.Rank} }

func (p Plan) check() error {
	switch p.Order {
	case "", OrderModel, OrderTrace:
	default:
		return fmt.Errorf("no order of fetching is called %.40q; there are %s and %s", p.Order, OrderModel, OrderTrace)
	}
	if p.Of() != (prefetch.Rank{}) && p.Order != OrderModel {
		return fmt.Errorf("a rank needs a part of a model, which only the order %s tells", OrderModel)
	}
	return p.Of().Check()
}

// Hours are a part of each day, HH:MM-HH:MM by the node's own clock and time
// zone. The first minute is of it, the last is not; where the second comes before
// the first, midnight is between them. The empty value is the whole day.
type Hours string

// parse returns the minutes of the day that h begins and ends with.
func (h Hours) parse() (begin, end int, err error) {
	var times [2]time.Time
	texts := [2]string{}
	if len(h) == len("22:00-06:00") && h[5] == '-' {
		texts = [2]string{string(h[:5]), string(h[6:])}
	}
	for i := range times {
		if times[i], err = time.Parse("15:04", texts[i]); err != nil {
			return 0, 0, fmt.Errorf("hours %.40q are not written as 22:00-06:00", string(h))
		}
	}
	minutes := func(t time.Time) int { return t.Hour()*60 + t.Minute() }
	if begin, end = minutes(times[0]), minutes(times[1]); begin == end {
		return 0, 0, fmt.Errorf("hours %s are none: they end when they begin", h)
	}
	return begin, end, nil
}

func (h Hours) check() error {
	if h == "" {
		return nil
	}
	_, _, err := h.parse()
	return err
}

// Has reports whether t, by the clock of its location, is in h. Hours that no
// order can have have every time.
func (h Hours) Has(t time.Time) bool {
	begin, end, err := h.parse()
	if err != nil {
		return true
	}
	now := t.Hour()*60 + t.Minute()
	if begin < end {
		return begin <= now && now < end
	}
	return now >= begin || now < end
}
