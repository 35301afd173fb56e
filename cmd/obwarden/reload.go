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

// policyWatch takes changes of a policy file over while the agent runs. A faulty file
// is refused as a whole: the policy that is in force stays.
type policyWatch struct {
	file     string               // empty: the built-in policy, which does not change
	taken    string               // hash of the policy in force
	apply    func(*policy.Policy) // puts a policy in force
	reloaded func(error)          // what became of a file, nil: it is in force
	log      *slog.Logger
}

// run looks until ctx ends, and at once whenever hangups has something.
//
// A file that changed must be the same in two looks before it is read: one that is
// being written may be half a policy, and valid.
func (w *policyWatch) run(ctx context.Context, hangups <-chan os.Signal) {
	ticker := time.NewTicker(policyInterval)
	defer ticker.Stop()
	handled := w.taken // what was last taken or refused
	seen := handled    // in the latest look
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
			now := looks(p, err)
			if now == seen && now != handled {
				handled = w.take(p, err)
			}
			seen = now
		}
	}
}

// looks tells one content of the file from another, faulty ones too.
func looks(p *policy.Policy, err error) string {
	if err != nil {
		return err.Error()
	}
	return p.Hash
}

// take puts a policy in force, or says why not, and returns what it looks like.
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
	return looks(p, err)
}
