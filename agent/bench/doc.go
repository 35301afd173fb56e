// Package bench measures the agent as it is shipped: the real binary, a NATS server
// that flushes every message, and an OCP that answers at once. It holds tests only.
//
// No figure means anything alone. Each stands beside its floor, measured in the same
// round on the same server: a bare loop that does what cannot be left out, with the
// same payloads, and nothing else. load_test.go is the run and its table, floor_test.go
// the bare loops, agent_test.go the binary, ocp_test.go the OCP, seed_test.go makes
// journals that are old already, soak_test.go lets it all run for an hour.
//
//	make bench
//	make soak SOAK_TIME=10m
package bench
