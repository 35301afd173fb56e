// Package agenttest runs real programs in tests: the obwarden binary, and the test binary itself in another role, such
// as a NATS server that can be killed or stopped. In the manner of net/http/httptest, what a function starts ends with
// the test.
//
// An agent or a NATS server within the test's own process is not for this package: see events/eventstest. The package
// imports events only.
package agenttest
