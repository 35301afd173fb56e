package ocp

import (
	"context"
	"errors"
	"strings"
)

var (
	errUnwell  = errors.New("OCP says that it is not well")
	errNoState = errors.New("the answer does not say how OCP is")
	errNoInfo  = errors.New("the answer does not say OCP's version")
)

// Info is the version of OCP.
type Info struct {
	Version string
	Name    string
}

// Status asks OCP whether it is well. If OCP says that it is not, the error is Refused.
func (c *Client) Status(ctx context.Context) error {
	call := get("status", "/api/status")
	call.plain = true
	envelope, err := c.read(ctx, call)
	if err != nil {
		return err
	}
	// Plain text is documented; some server may put it in quotes (unknown).
	state := strings.ToLower(strings.Trim(string(envelope.Data), "\" \t\r\n"))
	switch {
	case state == "okay", state == "ok":
		return nil
	case strings.HasPrefix(state, "bad"):
		failure := call.unexpected(envelope, errUnwell)
		failure.Class = Refused
		return failure
	}
	return call.unexpected(envelope, errNoState)
}

// Info asks OCP for its version.
func (c *Client) Info(ctx context.Context) (Info, error) {
	call := get("info", "/api/v2/info")
	call.plain = true // as in the published sample; an envelope is accepted too
	envelope, err := c.read(ctx, call)
	if err != nil {
		return Info{}, err
	}
	type wireInfo struct {
		BuildVersion text `json:"buildVersion"`
		Name         text `json:"name"`
	}
	var wire struct {
		wireInfo
		Data wireInfo `json:"data"`
	}
	if !isObject(envelope.Data) || decode(envelope.Data, &wire) != nil {
		return Info{}, call.unexpected(envelope, errNoInfo)
	}
	info := wire.wireInfo
	if info.BuildVersion == "" {
		info = wire.Data
	}
	if info.BuildVersion == "" {
		return Info{}, call.unexpected(envelope, errNoInfo)
	}
	return Info{Version: string(info.BuildVersion), Name: string(info.Name)}, nil
}
