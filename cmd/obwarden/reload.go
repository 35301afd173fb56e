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

// policyWatch puts changes of a policy file in force while the agent runs. A faulty file is refused as a whole, and the
// policy in force stays.
type policyWatch struct {
	file     string               // empty: the built-in policy, which does not change
	taken    string               // hash of the policy in force
	apply    func(*policy.Policy) // puts a policy in force
	reloaded func(error)          // gets the error of a refused file; nil: the policy is in force
	log      *slog.Logger
}

// run looks at the file until ctx ends, and reads it at once whenever hangups receives a signal.
//
// A changed file must be the same in two looks before it is put in force: half a policy, in a file that is just being
// written, may be valid.
func (w *policyWatch) run(ctx context.Context, hangups <-chan os.Signal) {
	ticker := time.NewTicker(policyInterval)
	defer ticker.Stop()
	handled := w.taken // the content that was last put in force or refused
	seen := handled    // the content in the latest look
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			if w.file == "" {
				w.log.Info("there is nothing to reload: OBWARDEN_POLICY_FILE is not set, so the built-in policy is in force")
				continue
			}
			handled = w.take(policy.Load(w.file))
			seen = handled
		case <-ticker.C:
			if w.file == "" {
				continue
			}
			p, err := policy.Load(w.file)
			now := contentOf(p, err)
			if now == seen && now != handled {
				handled = w.take(p, err)
			}
			seen = now
		}
	}
}

// contentOf tells one content of the file from another, be it a policy or faulty.
func contentOf(p *policy.Policy, err error) string {
	if err != nil {
		return err.Error()
	}
	return p.Hash
}

// take puts a policy in force, or logs why not, and returns the file's content.
func (w *policyWatch) take(p *policy.Policy, err error) string {
	switch {
	case err != nil:
		w.log.Error("the policy file is refused, and the policy in force stays", "file", w.file, "policy", w.taken, "err", err)
	case p.Hash == w.taken:
		w.log.Info("the policy file contains the policy that is in force already", "file", w.file, "policy", p.Hash)
	default:
		w.log.Info("a new policy is in force", "file", w.file, "policy", p.Hash, "before", w.taken)
		w.taken = p.Hash
		w.apply(p)
	}
	w.reloaded(err)
	return contentOf(p, err)
}
