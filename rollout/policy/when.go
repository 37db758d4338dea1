package policy

import (
	"fmt"
	"math"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"

	"coppice.dev/coppice/namespace"
)

// Bounds of an expression. It runs on every endpoint at every decision: both when it is published
// and when it runs its cost is bounded, in CEL's units, which are about a comparison each.
const (
	// WhenBytesMax bounds its text: a screen.
	WhenBytesMax = 4096
	// WhenCostMax bounds what it may cost: below a millisecond.
	WhenCostMax = 20_000
	// labelBytesMax is the length of labels that the estimate goes by.
	labelBytesMax = 256
)

// When is a compiled expression. Immutable; safe for concurrent use.
type When struct {
	text    string
	program cel.Program
	// CostMax is the most that it can cost, as worked out from its text.
	CostMax uint64
}

// variables are what an expression may name; anything else is refused when it is compiled.
var variables = []struct {
	name string
	typ  *cel.Type
	doc  string
}{
	{"facts.link", cel.StringType, "lan, vpn, internet, metered or offline"},
	{"facts.sessions", cel.IntType, "how many people are logged in; -1: not known"},
	{"facts.idleSeconds", cel.IntType, "since somebody last touched the machine; 0: not known"},
	{"facts.inhibited", cel.BoolType, "an inhibitor or a lock file is there, or nobody knows"},
	{"facts.ac", cel.BoolType, "on mains power, as far as is known"},
	{"facts.battery", cel.IntType, "percent; 0: not known"},
	{"facts.labels", cel.MapType(cel.StringType, cel.StringType), "the endpoint's labels"},
	{"offer.severity", cel.StringType, "routine, important, critical or emergency"},
	{"deadline.passed", cel.BoolType, "the deadline has passed"},
	{"deadline.seconds", cel.IntType, "until the deadline; very many if there is none"},
	{"pending.seconds", cel.IntType, "since a change is owed"},
	{"now", cel.TimestampType, "the instant of the decision"},
}

// Variables lists the names an expression may use with their types, for documentation.
func Variables() (names, types, docs []string) {
	for _, v := range variables {
		names, types, docs = append(names, v.name), append(types, v.typ.String()), append(docs, v.doc)
	}
	return names, types, docs
}

// environment is made once: it is the same for every expression.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	var opts []cel.EnvOption
	for _, v := range variables {
		opts = append(opts, cel.VariableWithDoc(v.name, v.typ, v.doc))
	}
	return cel.NewEnv(append(opts, cel.ParserExpressionSizeLimit(WhenBytesMax), cel.ParserRecursionLimit(32))...)
})

// CompileWhen reads an expression. path is where it stands, for errors. Kinds: Invalid for what
// does not compile, names what is not there or is no yes or no; Limit for what may cost too much.
func CompileWhen(text, path string) (*When, error) {
	bad := func(kind namespace.Kind, err error) (*When, error) {
		return nil, namespace.E(kind, "check policy", path, err)
	}
	if len(text) > WhenBytesMax {
		return bad(namespace.Limit, fmt.Errorf("%d bytes, at most %d", len(text), WhenBytesMax))
	}
	env, err := environment()
	if err != nil {
		return bad(namespace.Internal, err)
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		return bad(namespace.Invalid, issues.Err())
	}
	if ast.OutputType() != cel.BoolType {
		return bad(namespace.Invalid, fmt.Errorf("is of type %s, want a bool", ast.OutputType()))
	}
	estimate, err := env.EstimateCost(ast, sizes{})
	if err != nil {
		return bad(namespace.Invalid, err)
	}
	if estimate.Max > WhenCostMax {
		return bad(namespace.Limit, fmt.Errorf("may cost %d, at most %d", estimate.Max, WhenCostMax))
	}
	program, err := env.Program(ast, cel.CostLimit(WhenCostMax), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return bad(namespace.Invalid, err)
	}
	return &When{text, program, estimate.Max}, nil
}

// sizes tells the estimate how large inputs may be.
type sizes struct{}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	most := uint64(labelBytesMax)
	if p := n.Path(); len(p) == 1 && p[0] == "facts.labels" {
		most = LabelsMax
	} else if len(p) == 0 {
		return nil // a literal or a result: CEL knows better
	}
	return &cost.SizeEstimate{Min: 0, Max: most}
}

// Inputs are the values of an expression's variables.
type Inputs struct {
	Question Question // a copy, so that asking the gates allocates only where there is an expression
	Severity string
	Deadline time.Time
	Now      time.Time
}

func (e *Effective) inputs(q *Question, now time.Time) *Inputs {
	at, _ := e.Deadline(q)
	return &Inputs{*q, string(e.severity), at, now}
}

// Parent implements cel.Activation: there is none.
func (in *Inputs) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (in *Inputs) ResolveName(name string) (any, bool) {
	f := in.Question.Facts
	switch name {
	case "facts.link":
		return f.Link.String(), true
	case "facts.sessions":
		if !f.Busy.Known {
			return -1, true
		}
		return f.Busy.Sessions, true
	case "facts.idleSeconds":
		return int64(f.Busy.Idle / time.Second), true
	case "facts.inhibited":
		return !f.Busy.Known || f.Busy.Inhibitor != "" || f.Busy.LockFile != "", true
	case "facts.ac":
		return f.Power.Known && f.Power.AC, true
	case "facts.battery":
		return f.Power.Percent, true
	case "facts.labels":
		if len(f.Labels) > LabelsMax {
			return nil, false
		}
		return f.Labels, true
	case "offer.severity":
		return in.Severity, true
	case "deadline.passed":
		return !in.Deadline.IsZero() && !in.Now.Before(in.Deadline), true
	case "deadline.seconds":
		if in.Deadline.IsZero() {
			return int64(math.MaxInt64), true
		}
		return int64(in.Deadline.Sub(in.Now) / time.Second), true
	case "pending.seconds":
		if in.Question.Pending.IsZero() {
			return int64(0), true
		}
		return int64(in.Now.Sub(in.Question.Pending) / time.Second), true
	case "now":
		return in.Now, true
	}
	return nil, false
}

// Ask returns nil if the expression holds, else why not: a failing expression is a closed gate.
func (w *When) Ask(in *Inputs) error {
	v, _, err := w.program.Eval(in)
	if err != nil {
		return fmt.Errorf("%s: %w", w.text, err)
	}
	if yes, isBool := v.Value().(bool); !isBool || !yes {
		return fmt.Errorf("%s: does not hold", w.text)
	}
	return nil
}
