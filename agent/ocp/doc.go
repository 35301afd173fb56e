// Package ocp speaks OCP's HTTP API: it asks for stop, start and restart of a server,
// reads tasks and topology, and says of each failure whether the request can have had an
// effect. What OCP's words mean stands here and nowhere else: Server.Moving,
// Topology.Server, Task.Subject.
//
// It decides nothing about operations and remembers none of them; package agent does. It
// imports nothing of ours. Facts about OCP are marked as documented, observed (in
// published samples and public clients) or unknown. Whatever is unknown is tolerated.
package ocp
