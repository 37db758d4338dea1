package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestEveryCommandExplainsItself holds for what people call. The help and completion commands are
// cobra's own.
func TestEveryCommandExplainsItself(t *testing.T) {
	a := &app{}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		var out, errs bytes.Buffer
		code := run(t.Context(), args, &out, &errs)
		if code != exitOK || errs.Len() > 0 {
			t.Errorf("%v exits with %d, %q", args, code, &errs)
		}
		for _, part := range []string{"Usage:", "Examples:\n  "} {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%v shows no %q", args, part)
			}
		}
		if c.Short == "" {
			t.Errorf("%v says not in one line what it does", args)
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(a.command())
}
