package ocp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
)

var (
	errAction = errors.New("the action is none of stop, start and restart")
	errID     = errors.New("ids of clusters and servers start at 1")
)

// Action is an operation on a server.
type Action string

// The actions.
const (
	Stop    Action = "stop"
	Start   Action = "start"
	Restart Action = "restart"
)

// Params are the parameters of a stop or restart; a start has none (documented).
type Params struct {
	Force        bool   // stop without waiting for logs: unsafe; deprecated in V4.3
	FreezeServer *bool  // minor compaction first; nil: OCP's default, which V4.3 does not have and gets false
	StopType     string // `type` of a stop, e.g. STOP_SERVICE; other values are unknown and passed through
}

// RequestID names a request to gateways that honour such names; OCP itself documents none.
type RequestID struct {
	IdempotencyKey string // header Idempotency-Key
	XRequestID     string // header X-Request-Id
}

// Operate asks OCP to stop, start or restart a server and returns the task that does it. It
// is one POST, never repeated, whatever happens. The class of an error says whether the
// server may be stopping nevertheless.
//
// The task is as OCP answered it. It need not name the cluster and server that were asked
// for: check it.
func (c *Client) Operate(
	ctx context.Context, action Action, clusterID, serverID int64, params Params, id RequestID,
) (Task, error) {
	call := post("server_"+string(action), "/api/v2/ob/clusters/%d/servers/%d/"+string(action), clusterID, serverID)
	call.id = id
	switch {
	case action != Stop && action != Start && action != Restart:
		return Task{}, &Error{Class: Refused, Err: errAction}
	case clusterID < 1 || serverID < 1:
		return Task{}, call.failure(Refused, errID)
	}
	if err := call.pass(params.fields(action, c.api), c.params); err != nil {
		return Task{}, call.failure(Refused, err)
	}
	envelope, err := c.post(ctx, call)
	if err != nil {
		return Task{}, err
	}
	return call.task(envelope)
}

// fields returns the parameters to send. Parameters at their default are left out, except
// for freezeServer, which V4.3 requires (documented).
func (p Params) fields(action Action, api API) map[string]any {
	fields := map[string]any{}
	if action == Start {
		return fields
	}
	if p.Force {
		fields["force"] = true
	}
	if p.FreezeServer != nil {
		fields["freezeServer"] = *p.FreezeServer
	} else if api == V43 {
		fields["freezeServer"] = false
	}
	if action == Stop && p.StopType != "" {
		fields["type"] = p.StopType
	}
	return fields
}

// pass puts fields where OCP looks for parameters. Without fields there is no body.
func (c *call) pass(fields map[string]any, style ParamStyle) error {
	if len(fields) == 0 {
		return nil
	}
	if style == JSON {
		var err error
		c.body, err = json.Marshal(fields)
		return err
	}
	c.query = url.Values{}
	for name, value := range fields {
		c.query.Set(name, fmt.Sprint(value))
	}
	return nil
}
