package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// docsCommand writes the manual from the command table: docs/CLI.md, and man pages.
func (a *app) docsCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "docs DIR",
		Short:  "Write the command reference and the man pages into DIR",
		Hidden: true,
		Args:   exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return writeDocs(root, args[0])
		},
	}
}

// manDate is fixed, so that the pages are reproducible.
var manDate = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func writeDocs(root *cobra.Command, dir string) error {
	man := filepath.Join(dir, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return disk.Error("create", man, err)
	}
	header := &doc.GenManHeader{Title: "COPPICE", Section: "1", Source: "coppice", Manual: "Coppice", Date: &manDate}
	if err := doc.GenManTree(root, header, man); err != nil {
		return namespace.E(namespace.KindOf(err), "write", man, err)
	}
	var b bytes.Buffer
	b.WriteString("# Command reference\n\nGenerated from the command table by `make docs`; do not edit.\n")
	if err := reference(&b, root); err != nil {
		return err
	}
	path := filepath.Join(dir, "CLI.md")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return disk.Error("write", path, err)
	}
	return nil
}

// reference writes one section for each command that people call.
func reference(b *bytes.Buffer, c *cobra.Command) error {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return nil
	}
	var one bytes.Buffer
	if err := doc.GenMarkdownCustom(c, &one, func(s string) string { return "#" + strings.TrimSuffix(s, ".md") }); err != nil {
		return namespace.E(namespace.Internal, "document", c.CommandPath(), err)
	}
	text, _, _ := strings.Cut(one.String(), "### Options inherited")
	text, _, _ = strings.Cut(text, "### SEE ALSO")
	b.WriteString("\n" + strings.TrimSpace(text) + "\n")
	for _, sub := range c.Commands() {
		if err := reference(b, sub); err != nil {
			return err
		}
	}
	return nil
}
