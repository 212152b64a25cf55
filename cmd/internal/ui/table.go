package ui

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A Table is rows under a header, for people. The zero Table has no header.
type Table struct{ rows []string }

// NewTable returns a table with one column for each header.
func NewTable(header ...any) *Table {
	t := &Table{}
	t.Row(header...)
	return t
}

// Row adds a row; each cell is printed as fmt.Sprint does.
func (t *Table) Row(cells ...any) {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = strings.ReplaceAll(printable(fmt.Sprint(c)), "\n", " ")
	}
	t.rows = append(t.rows, strings.Join(text, "\t"))
}

// Print writes the table with its columns aligned, two spaces apart.
func (t *Table) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		if _, err := fmt.Fprintln(tw, row); err != nil {
			return err
		}
	}
	return tw.Flush()
}
