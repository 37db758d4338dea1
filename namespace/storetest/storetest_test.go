package storetest_test

import (
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

func TestMem(t *testing.T) {
	t.Run("Source", func(t *testing.T) {
		storetest.TestSource(t, func(*testing.T) (namespace.Origin, namespace.Source) {
			m := storetest.NewMem()
			return m, m
		})
	})
	t.Run("Store", func(t *testing.T) {
		storetest.TestStore(t, func(*testing.T) namespace.Store { return storetest.NewMem() })
		storetest.TestAger(t, func(*testing.T) namespace.Store { return storetest.NewMem() })
	})
	t.Run("Refs", func(t *testing.T) {
		storetest.TestRefs(t, func(*testing.T) [2]storetest.RefStore {
			m := storetest.NewMem()
			return [2]storetest.RefStore{m, m}
		})
	})
	t.Run("Wait", func(t *testing.T) {
		storetest.TestWait(t, func(*testing.T) (namespace.RefWriter, namespace.RefWaiter) {
			m := storetest.NewMem()
			return m, m
		})
	})
}

// A Faulty without faults is as good as what it wraps.
func TestFaulty(t *testing.T) {
	open := func() *storetest.Faulty { return &storetest.Faulty{Origin: storetest.NewMem()} }
	storetest.TestSource(t, func(*testing.T) (namespace.Origin, namespace.Source) { f := open(); return f, f })
	storetest.TestStore(t, func(*testing.T) namespace.Store { return open() })
	storetest.TestAger(t, func(*testing.T) namespace.Store { return open() })
	storetest.TestRefs(t, func(*testing.T) [2]storetest.RefStore {
		f := open()
		return [2]storetest.RefStore{f, f}
	})
}
