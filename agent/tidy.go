package agent

import (
	"context"
	"time"

	"github.com/obwarden/obwarden/events"
)

// tidyEvery is how often the request stream is looked at for requests that NATS should have removed.
const tidyEvery = 30 * time.Second

// tidy drops requests, until ctx ends, that were acknowledged a while ago and are in the stream all the same.
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
			a.Log.Warn("requests that NATS should have removed not looked for", "error", err)
		case dropped > 0:
			a.Log.Warn("requests dropped that NATS kept although they were acknowledged: was it killed?",
				"stream", events.RequestStream, "from", dropped, "to", upTo)
		}
	}
}
