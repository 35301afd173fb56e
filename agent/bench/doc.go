// Package bench measures the agent as it is shipped: the real binary, a NATS server
// that flushes every message, and an OCP that answers at once. It holds tests only.
//
// No figure means anything alone. Each stands beside its floor, measured in the same
// round on the same server: a bare loop that does what cannot be left out, with the
// same payloads, and nothing else. load_test.go is the run, table_test.go what it prints
// and README shows, floor_test.go the bare loops, process_test.go and agent_test.go the
// binary, nats_test.go NATS servers and clusters, ocp_test.go the OCP, seed_test.go makes
// journals that are old already. scaleout_test.go has three agents share the work,
// soak_test.go lets one run for an hour.
//
//	make bench
//	make bench-readme
//	make soak SOAK_TIME=30m
package bench
