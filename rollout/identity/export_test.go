package identity

import "time"

// NoteForTest remembers a host with a pin of these hex digits.
func NoteForTest(k *Known, host, digits string) error {
	p, err := ParsePin(pinPrefix + digits)
	if err != nil {
		return err
	}
	return k.note(host, p)
}

// LookAgainForTest makes the next look at a pair's files due.
func LookAgainForTest(k *KeyPair) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looked = time.Time{}
}

// ClientOfForTest is clientOf.
func ClientOfForTest(remote string) string { return clientOf(remote) }

// RateClientsForTest is how many clients r remembers.
func RateClientsForTest(r *Rate) int { return r.recent.Len() }
