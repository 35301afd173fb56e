package agent

import (
	"context"
	"time"

	"github.com/obwarden/obwarden/events"
)

// tidyEvery is how often an agent looks for requests that NATS should have removed from the stream.
const tidyEvery = 30 * time.Second

// tidy drops requests that were acknowledged a while ago and are still in the stream, until ctx ends.
func (a *Agent) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	var acknowledged uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		upTo := acknowledged
		try, cancel := context.WithTimeout(ctx, tidyEvery)
		dropped, now, err := events.DropAcknowledged(try, a.JetStream, upTo)
		cancel()
		acknowledged = now
		switch {
		case ctx.Err() != nil:
		case err != nil:
			a.Log.Warn("cannot look for requests that NATS should have removed", "error", err)
		case dropped > 0:
			a.Log.Warn("dropped requests that NATS kept although they were acknowledged: was it killed?",
				"stream", events.RequestStream, "from", dropped, "to", upTo)
		}
	}
}
