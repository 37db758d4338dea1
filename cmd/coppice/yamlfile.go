package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"coppice.dev/coppice/namespace"
)

// yamlFile is a parsed YAML file that can say where in it something stands.
type yamlFile struct {
	name string
	tree *ast.File
}

// decode reads a file into v. Unknown keys are errors. Kinds: Invalid, with line and column.
func (f *yamlFile) decode(b []byte, v any) (err error) {
	defer func() { // the library meets some values with a wrong tag with a panic
		if r := recover(); r != nil {
			err = namespace.E(namespace.Invalid, "read", f.name, fmt.Errorf("not understood: %v", r))
		}
	}()
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(v); err != nil {
		return f.yamlError(err)
	}
	if f.tree, err = parser.ParseBytes(b, 0); err != nil {
		return f.yamlError(err)
	}
	return nil
}

// yamlError puts file, line and column in front of what the decoder says, and its picture of the
// place behind.
func (f *yamlFile) yamlError(err error) error {
	var y yaml.Error
	if !errors.As(err, &y) || y.GetToken() == nil {
		return namespace.E(namespace.Invalid, "read", f.name, errors.New(yaml.FormatError(err, false, true)))
	}
	pos := y.GetToken().Position
	where := fmt.Sprintf("%s:%d:%d", f.name, pos.Line, pos.Column)
	_, picture, _ := strings.Cut(yaml.FormatError(err, false, true), "\n")
	return namespace.WithHint(namespace.E(namespace.Invalid, where, "", errors.New(y.GetMessage())), picture)
}

// at puts file and line of what is at a path, as $.steps[2], in front of an error.
func (f *yamlFile) at(path string, err error) error {
	where := f.name
	if p, perr := yaml.PathString(path); perr == nil {
		if node, nerr := p.FilterFile(f.tree); nerr == nil && node.GetToken() != nil {
			where = fmt.Sprintf("%s:%d", f.name, node.GetToken().Position.Line)
		}
	}
	return namespace.E(namespace.KindOf(err), where, "", err)
}
