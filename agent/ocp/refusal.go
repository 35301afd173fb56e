package ocp

import (
	"errors"
	"net/http"
	"slices"
)

// RefusedWith reports whether OCP itself refused, with one of the HTTP statuses. The refusal of a gateway in front of
// OCP says nothing about OCP's users and clusters.
func RefusedWith(err error, statuses ...int) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Class == Refused && e.Err == nil && slices.Contains(statuses, e.Status)
}

// Forbidden reports whether OCP said that this user may not.
func Forbidden(err error) bool {
	return RefusedWith(err, http.StatusUnauthorized, http.StatusForbidden)
}
