package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// jsonFlag adds --json to a command that prints any number of values.
func jsonFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "one JSON object a line")
}

// A printer prints the values of an answer: each as a JSON object on a line, or as a row
// of a table.
type printer[T any] struct {
	json   *json.Encoder // nil: a table
	table  *tabwriter.Writer
	header string
	row    func(T) []any
	begun  bool
	rows   int
}

// alignedRows is the number of rows in which columns have the same width. It bounds the
// memory of a table.
const alignedRows = 10_000

// newPrinter returns a printer to out. row returns the cells of a value under header,
// which has tabs between its columns.
func newPrinter[T any](out io.Writer, asJSON bool, header string, row func(T) []any) *printer[T] {
	if asJSON {
		return &printer[T]{json: json.NewEncoder(out)}
	}
	return &printer[T]{table: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), header: header, row: row}
}

// print prints v, and before the first one the header.
func (p *printer[T]) print(v T) error {
	if p.json != nil {
		return p.json.Encode(v)
	}
	p.begin()
	cells := p.row(v)
	_, err := fmt.Fprintf(p.table, strings.TrimSuffix(strings.Repeat("%v\t", len(cells)), "\t")+"\n", cells...)
	if p.rows++; p.rows%alignedRows == 0 && err == nil {
		err = p.table.Flush()
	}
	return err
}

func (p *printer[T]) begin() {
	if !p.begun {
		p.begun = true
		_, _ = fmt.Fprintln(p.table, p.header)
	}
}

// end ends the table. A table without rows has its header, unless err is why.
func (p *printer[T]) end(err error) error {
	if p.json != nil {
		return err
	}
	if err == nil {
		p.begin()
	}
	return errors.Join(err, p.table.Flush())
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04")
}
