package fusefs

// OldKernel takes abilities of the kernel away until undo is called: moving a mount beneath another
// (Linux 6.5), and cloning a detached one (6.15).
func OldKernel(beneath, detached bool) (undo func()) {
	b, d := movesBeneath, clonesDetached
	if beneath {
		movesBeneath = func() bool { return false }
	}
	if detached {
		clonesDetached = func(int) bool { return false }
	}
	return func() { movesBeneath, clonesDetached = b, d }
}

// Leaving returns how many generations have drained but are still known to the kernel.
func (s *Server) Leaving() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leaving)
}
