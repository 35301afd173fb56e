package policy

import "sync/atomic"

// Live holds the policy in force. There is one Live in a process: whoever loads a policy
// file sets it, and every decision loads it anew. All methods may be called concurrently.
type Live struct {
	policy  atomic.Pointer[Policy]
	changed chan struct{} // holds one signal until somebody receives it
}

// NewLive returns a holder with p in force.
func NewLive(p *Policy) *Live {
	l := &Live{changed: make(chan struct{}, 1)}
	l.policy.Store(p)
	return l
}

// Load returns the policy in force. It does not change: keep it for as long as one
// decision takes, and no longer.
func (l *Live) Load() *Policy { return l.policy.Load() }

// Set puts p in force. It never blocks.
func (l *Live) Set(p *Policy) {
	l.policy.Store(p)
	select {
	case l.changed <- struct{}{}:
	default: // a signal nobody has received yet covers this change too
	}
}

// Changed returns the channel that receives a signal after Set, for one goroutine to wait
// on: call Load after each signal. Several changes may come as one signal, but Load after
// the latest signal returns the latest policy.
func (l *Live) Changed() <-chan struct{} { return l.changed }
