package events

import (
	"strings"
	"testing"
)

func TestOrdersNameTheirTargetInTheSubject(t *testing.T) {
	t.Parallel()
	op := Operation{OperationID: OperationID("k"), Kind: Stop, ClusterID: 1, ServerID: 2}
	for _, verb := range []Verb{Cancel, Retry} {
		order := OrderTo(verb, op)
		order.Reason, order.RequestedBy = "why", "who"
		msg, err := order.Message()
		if err != nil {
			t.Fatal(err)
		}
		if want := "ob.server.stop." + string(verb) + "." + op.OperationID + ".1.2"; msg.Subject != want {
			t.Errorf("subject %s, want %s", msg.Subject, want)
		}
		got, err := DecodeOrder(msg.Subject, msg.Data)
		if err != nil || got != order {
			t.Errorf("decoded %+v, %v; want %+v", got, err, order)
		}
	}
}

func TestFaultyOrdersAreRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ subject, body, want string }{
		{"ob.server.stop.cancel.id", "", "not of the form"},
		{"ob.server.stop.postpone.id.1.2", "", "not of the form"},
		{"ob.server.stop.cancel.id.one.2", "", "integers"},
		{"ob.server.stop.cancel.id.1.0", "", "integers"},
		{"ob.server.stop.cancel.id.1.2", `{"reasn":"x"}`, "reasn"},
		{"ob.server.stop.cancel.id.1.2", `{"reason":1}`, "reason"},
		{"ob.server.stop.cancel.id.1.2", `{"reason":"` + strings.Repeat("r", MaxReasonBytes+1) + `"}`, "reason"},
		{"ob.server.stop.cancel.id.1.2", `{`, "body"},
		{"ob.server.stop.cancel.id.1.2", strings.Repeat(" ", MaxRequestBytes+1), "65536"},
	} {
		if _, err := DecodeOrder(tt.subject, []byte(tt.body)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %.40s: %v, want an error with %q", tt.subject, tt.body, err, tt.want)
		}
	}
}

func TestWhatAnOperationAccepts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		state State
		task  *Task
		verb  Verb
		ok    bool
	}{
		{Accepted, nil, Cancel, true},
		{Waiting, nil, Cancel, true},
		{Submitting, nil, Cancel, false},
		{Running, &Task{}, Cancel, false},
		{Succeeded, &Task{}, Cancel, false},
		{Failed, &Task{}, Retry, true},
		{Failed, nil, Retry, false},
		{Succeeded, &Task{}, Retry, false},
		{Running, &Task{}, Retry, false},
	} {
		op := Operation{N: 3, OperationID: "id", Kind: Stop, ClusterID: 1, ServerID: 2, State: tt.state, Task: tt.task}
		if err := op.Accepts(OrderTo(tt.verb, op)); (err == nil) != tt.ok {
			t.Errorf("%s of what is %s: %v, want it accepted: %v", tt.verb, tt.state, err, tt.ok)
		}
		other := op
		other.ServerID = 3
		if err := op.Accepts(OrderTo(tt.verb, other)); err == nil {
			t.Errorf("%s of what is %s: an order for another server is accepted", tt.verb, tt.state)
		}
	}
}

func FuzzDecodeOrder(f *testing.F) {
	f.Add("ob.server.stop.cancel.id.1.2", []byte(`{"reason":"x"}`))
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		order, err := DecodeOrder(subject, body)
		if err == nil && (order.ClusterID < 1 || order.ServerID < 1 || order.Subject() != subject) {
			t.Errorf("%q decoded to %+v", subject, order)
		}
	})
}
