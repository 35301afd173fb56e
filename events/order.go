package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
)

// Order tells the agent what to do with an operation that exists: a person cancels, retries
// or approves it. The subject names the target too, so that NATS permissions can say who may
// give orders about which servers. An order with another target than the operation is refused.
type Order struct {
	Verb        Verb   `json:"-"`
	Kind        Kind   `json:"-"`
	OperationID string `json:"-"`
	ClusterID   int64  `json:"-"`
	ServerID    int64  `json:"-"`
	Reason      string `json:"reason,omitempty"`
	RequestedBy string `json:"requested_by,omitempty"`
}

// OrderTo returns an order about op.
func OrderTo(v Verb, op Operation) Order {
	return Order{Verb: v, Kind: op.Kind, OperationID: op.OperationID, ClusterID: op.ClusterID, ServerID: op.ServerID}
}

// Subject is where the order is published.
func (o Order) Subject() string {
	return fmt.Sprintf("ob.server.%s.%s.%s.%d.%d", o.Kind, o.Verb, o.OperationID, o.ClusterID, o.ServerID)
}

// IsOrder reports whether a message of the request stream is an order, and not a request.
func IsOrder(subject string) bool {
	tokens := strings.Split(subject, ".")
	return len(tokens) > 3 && tokens[0] == "ob" && tokens[1] == "server" && slices.Contains(Verbs(), Verb(tokens[3]))
}

// Message is the order as it is published.
func (o Order) Message() (*nats.Msg, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	msg := nats.NewMsg(o.Subject())
	msg.Header.Set("Content-Type", "application/json")
	msg.Data = body
	return msg, nil
}

// DecodeOrder reads an order; its body may be empty.
func DecodeOrder(subject string, body []byte) (Order, error) {
	tokens := strings.Split(subject, ".")
	if !IsOrder(subject) || len(tokens) != 7 {
		const form = "ob.server.<kind>.<cancel, retry or approve>.<operation>.<cluster>.<server>"
		return Order{}, fmt.Errorf("subject %q: not of the form %s", subject, form)
	}
	o := Order{Verb: Verb(tokens[3]), Kind: Kind(tokens[2]), OperationID: tokens[4]}
	var errCluster, errServer error
	o.ClusterID, errCluster = parseID(tokens[5])
	o.ServerID, errServer = parseID(tokens[6])
	if errCluster != nil || errServer != nil {
		return o, fmt.Errorf("subject %q: cluster and server must be integers of at least 1", subject)
	}
	if len(body) == 0 {
		return o, nil
	}
	if len(body) > MaxRequestBytes {
		return o, fmt.Errorf("body: %d bytes, at most %d are allowed", len(body), MaxRequestBytes)
	}
	fields, err := decodeObject(body)
	if err != nil {
		return o, fmt.Errorf("body: %w", err)
	}
	var faults []error
	for name, raw := range fields {
		into := map[string]*string{"reason": &o.Reason, "requested_by": &o.RequestedBy}[name]
		if into == nil {
			faults = append(faults, fmt.Errorf("%.64q: unknown field", name))
		} else if err := decodeString(into, raw); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		} else if len(*into) > MaxReasonBytes {
			faults = append(faults, fmt.Errorf("%s: %d bytes, at most %d are allowed", name, len(*into), MaxReasonBytes))
		}
	}
	return o, errors.Join(faults...)
}
