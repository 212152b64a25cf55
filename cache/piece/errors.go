package piece

import (
	"errors"
	"fmt"
)

// Every failure on the path of a byte is of one of four classes, and the class
// alone decides what happens next:
//
//	ErrNotHere           this source does not hold it: ask the next source
//	*WrongBytesError     it sent bytes that do not match: blame it, ask the next source
//	ErrNotTrusted        the policy refuses: stop
//	anything else        the source is failing: back off, then ask again
var (
	ErrNotHere    = errors.New("not here")
	ErrNotTrusted = errors.New("not trusted")
)

// A WrongBytesError says that bytes do not match their object.
type WrongBytesError struct {
	Object Digest
	Piece  int    // -1 when the whole object's digest is meant
	From   string // who sent them; empty when not known
}

func (e *WrongBytesError) Error() string {
	what := fmt.Sprintf("piece %d of object %s does not match its root", e.Piece, e.Object)
	if e.Piece < 0 {
		what = fmt.Sprintf("object %s does not match its digest", e.Object)
	}
	if e.From != "" {
		what += " (sent by " + e.From + ")"
	}
	return what
}

// A SizeError says that an object has another size than was promised.
type SizeError struct{ Want, Got int64 }

func (e *SizeError) Error() string {
	return fmt.Sprintf("%d bytes where %d were promised", e.Got, e.Want)
}
