package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/obwarden/obwarden/agent/policy"
)

// policyInterval is how often a policy file is looked at for a change.
const policyInterval = 5 * time.Second

// policyWatch takes over changes of a policy file while the agent runs. It refuses a faulty
// file as a whole: the policy in force stays.
type policyWatch struct {
	file     string               // empty: the built-in policy, which does not change
	taken    string               // hash of the policy in force
	apply    func(*policy.Policy) // puts a policy in force
	reloaded func(error)          // called with the error of each file read; nil: it is in force
	log      *slog.Logger
}

// run looks at the file now and then until ctx ends, and at once after each hangup.
//
// A changed file must be the same in two looks before it is taken over: a file that is
// being written may be half a policy, and valid.
func (w *policyWatch) run(ctx context.Context, hangups <-chan os.Signal) {
	ticker := time.NewTicker(policyInterval)
	defer ticker.Stop()
	handled := w.taken // the content that was last taken over or refused
	seen := handled    // the content in the latest look
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			if w.file == "" {
				w.log.Info("there is nothing to reload: the policy is the built-in one, OBWARDEN_POLICY_FILE is not set")
				continue
			}
			handled = w.take(policy.Load(w.file))
			seen = handled
		case <-ticker.C:
			if w.file == "" {
				continue
			}
			p, err := policy.Load(w.file)
			now := fingerprint(p, err)
			if now == seen && now != handled {
				handled = w.take(p, err)
			}
			seen = now
		}
	}
}

// fingerprint tells one content of the file from another, faulty ones too.
func fingerprint(p *policy.Policy, err error) string {
	if err != nil {
		return err.Error()
	}
	return p.Hash
}

// take puts a policy in force, or logs why not, and returns its fingerprint.
func (w *policyWatch) take(p *policy.Policy, err error) string {
	switch {
	case err != nil:
		w.log.Error("the policy file is refused, the policy in force stays", "file", w.file, "policy", w.taken, "err", err)
	case p.Hash == w.taken:
		w.log.Info("the policy file holds the policy in force", "file", w.file, "policy", p.Hash)
	default:
		w.log.Info("a new policy is in force", "file", w.file, "policy", p.Hash, "before", w.taken)
		w.taken = p.Hash
		w.apply(p)
	}
	w.reloaded(err)
	return fingerprint(p, err)
}
