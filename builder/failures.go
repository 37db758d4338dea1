package builder

import (
	"errors"
	"fmt"
	"sync"

	"coppice.dev/coppice/namespace"
)

// failuresMax is how many unreadable files are named before an import gives up: enough to see a
// pattern, few enough to read.
const failuresMax = 10

// failures collects errors of single files, so that a user learns of all of them at once.
type failures struct {
	mu   sync.Mutex
	errs []error
	full bool
}

// add records the failure of one file. It returns an error once there are too many.
func (f *failures) add(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full {
		return errTooMany
	}
	f.errs = append(f.errs, err)
	if len(f.errs) < failuresMax {
		return nil
	}
	f.full = true
	return errTooMany
}

var errTooMany = errors.New("too many files cannot be read")

// fatal records the error that ended the import, unless it only follows from those before.
func (f *failures) fatal(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) == 0 && !errors.Is(err, errTooMany) && !namespace.IsKind(err, namespace.Canceled) {
		f.errs, f.full = append(f.errs, err), true
	}
}

// join returns all failures as one error of the first one's Kind, or nil.
func (f *failures) join() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch len(f.errs) {
	case 0:
		return nil
	case 1:
		return f.errs[0]
	}
	all := namespace.E(namespace.KindOf(f.errs[0]), "import", fmt.Sprintf("%d paths", len(f.errs)), errors.Join(f.errs...))
	for _, err := range f.errs {
		if hint := namespace.HintOf(err); hint != "" { // a joined error hides those inside
			return namespace.WithHint(all, hint)
		}
	}
	return all
}
