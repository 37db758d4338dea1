package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// source is a parsed file of ours.
type source struct {
	path, pkg string // relative to the root; the directory
	test      bool
	lines     int
	text      string
	ast       *ast.File
}

var (
	fset    = token.NewFileSet()
	sources []source
)

func TestMain(m *testing.M) {
	if err := load(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func load() error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != ".." && path != root) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, b, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		sources = append(sources, source{rel, filepath.Dir(rel), strings.HasSuffix(path, "_test.go"),
			strings.Count(string(b), "\n"), string(b), f})
		return err
	})
}

func TestFloors(t *testing.T) {
	for _, s := range sources {
		allowed, known := floors[s.pkg]
		if !known {
			t.Errorf("%s: package %s is not in the house; add it to floors with care", s.path, s.pkg)
			continue
		}
		for _, imp := range s.ast.Imports {
			path := strings.Trim(imp.Path.Value, `"`)
			if ours, ok := strings.CutPrefix(path, module); ok {
				if ours != s.pkg && !slices.Contains(allowed, ours) && !(s.test && slices.Contains(testRooms, ours)) {
					t.Errorf("%s must not import %s", s.path, ours)
				}
			} else if strings.Contains(strings.Split(path, "/")[0], ".") {
				checkDoor(t, s, path)
			}
			if slices.Contains(pure[s.pkg], path) && !s.test {
				t.Errorf("%s: %s is pure and must not import %s", s.path, s.pkg, path)
			}
		}
	}
}

func checkDoor(t *testing.T, s source, path string) {
	for lib, pkgs := range doors {
		if strings.HasPrefix(path, lib) {
			if !slices.Contains(pkgs, s.pkg) && !s.test {
				t.Errorf("%s imports %s, whose door is %s", s.path, path, strings.Join(pkgs, ", "))
			}
			return
		}
	}
	t.Errorf("%s imports %s, which has no door", s.path, path)
}

func TestPackagesAreDocumentedOnce(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range sources {
		if s.test {
			continue
		}
		docs[s.pkg] = append(docs[s.pkg], nil...)
		if s.ast.Doc != nil {
			docs[s.pkg] = append(docs[s.pkg], s.path)
			if !strings.HasPrefix(s.ast.Doc.Text(), "Package "+s.ast.Name.Name) && s.ast.Name.Name != "main" {
				t.Errorf("%s: the package comment does not begin with the package's name", s.path)
			}
		}
	}
	for pkg, files := range docs {
		if len(files) != 1 {
			t.Errorf("%s has %d package comments, want one: %v", pkg, len(files), files)
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, s := range sources {
		if s.test || s.ast.Name.Name == "main" {
			continue
		}
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && d.Doc == nil {
					t.Errorf("%s: %s has no comment", fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s: type %s has no comment", fset.Position(ts.Pos()), ts.Name.Name)
					}
				}
			}
		}
	}
}

// exportedReceiver reports whether d is a function, or a method of an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if idx, ok := typ.(*ast.IndexExpr); ok {
		typ = idx.X
	}
	id, ok := typ.(*ast.Ident)
	return !ok || id.IsExported()
}

func TestSizes(t *testing.T) {
	functions, long := 0, []string{}
	for _, s := range sources {
		if s.lines > fileMax {
			t.Errorf("%s has %d lines, at most %d", s.path, s.lines, fileMax)
		}
		for _, d := range s.ast.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || s.test {
				continue
			}
			functions++
			n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1
			if n > functionMax {
				t.Errorf("%s: %s has %d lines, at most %d", s.path, f.Name.Name, n, functionMax)
			}
			if n > functionLines {
				long = append(long, fmt.Sprintf("%s: %s has %d lines", s.path, f.Name.Name, n))
			}
		}
	}
	if functions == 0 || float64(len(long)) > longShare*float64(functions) {
		t.Errorf("%d of %d functions exceed %d lines:\n%s", len(long), functions, functionLines, strings.Join(long, "\n"))
	}
}

func TestNoBannedIdioms(t *testing.T) {
	for _, s := range sources {
		if s.test || s.pkg == "internal/tidy" {
			continue
		}
		for idiom, why := range banned {
			if strings.Contains(s.text, idiom) && !slices.Contains(bannedExcept[idiom], s.path) {
				t.Errorf("%s: %q: %s", s.path, idiom, why)
			}
		}
	}
}

func TestTopLevel(t *testing.T) {
	allowed := strings.Fields(topLevelAllowed)
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(allowed, e.Name()) && e.Name() != "bin" {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
}

// TestNoTestSkips holds that a test that cannot run fails: a skip in CI looks like success.
func TestNoTestSkips(t *testing.T) {
	for _, s := range sources {
		if !s.test || s.pkg == "internal/tidy" {
			continue
		}
		for _, call := range []string{".Skip(", ".Skipf(", ".SkipNow("} {
			if strings.Contains(s.text, call) {
				t.Errorf("%s skips; fail with the name of what is missing, or move it behind make test-long", s.path)
			}
		}
	}
}
