// Package events is obwarden's language on NATS: subjects, streams and buckets, the
// documents of requests, orders and operations, the table of codes, CloudEvents in both
// directions, and the embedded NATS server.
//
// It decides nothing and keeps no state of operations; package agent does both. It imports
// no other package of obwarden, so that any Go program can speak to the agent with it.
// README.md describes the language for its users.
package events
