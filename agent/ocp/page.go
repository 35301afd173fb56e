package ocp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/url"
	"strconv"
)

var errNoList = errors.New("the answer has no list")

// PageSize is how many entries of a list one request asks for; the documented limit is 2000.
const PageSize = 100

const maxPages = 1000

// listed is an entry of a list. Its key is unique in the list.
type listed interface{ key() any }

// page is the data of a list: entries, which may come with a note about further pages.
type page struct {
	entries []json.RawMessage
	pages   int // 0: unknown
	total   int // 0: unknown
}

// read reads the data of an envelope.
func (p *page) read(data []byte) error {
	if bytes.HasPrefix(data, []byte("[")) {
		return json.Unmarshal(data, &p.entries)
	}
	if !isObject(data) {
		return errNoList
	}
	var wire struct {
		Contents []json.RawMessage `json:"contents"`
		Page     struct {
			TotalElements integer `json:"totalElements"`
			TotalPages    integer `json:"totalPages"`
			TotalPage     integer `json:"totalPage"` // documented in some places
		} `json:"page"`
	}
	if err := decode(data, &wire); err != nil {
		return err
	}
	p.entries = wire.Contents
	p.pages = firstKnown(wire.Page.TotalPages, wire.Page.TotalPage).count()
	p.total = wire.Page.TotalElements.count()
	return nil
}

// list collects the entries of all pages, each key once: a list that grows while it is read
// shows entries again. Entries that decode cannot read are left out.
//
// It stops when the answer says so, at a page without new entries, at a page after which
// past says that no more are wanted, and after 1000 pages. If the answer does not say
// whether there are more pages, only lists that are documented to have pages (paged) are
// asked for more than one.
func list[T listed](
	ctx context.Context, c *Client, call call, paged bool, decode func([]byte) (T, error), past func([]T) bool,
) ([]T, error) {
	var entries []T
	seen := map[any]bool{}
	read := 0
	for number := 1; number <= maxPages; number++ {
		if paged || number > 1 {
			call.setPage(number)
		}
		envelope, err := c.read(ctx, call)
		if err != nil {
			return nil, err
		}
		var p page
		if envelope.Data != nil && p.read(envelope.Data) != nil {
			return nil, call.unexpected(envelope, errNoList)
		}
		first := len(entries)
		for _, raw := range p.entries {
			if entry, err := decode(raw); err == nil && !seen[entry.key()] {
				seen[entry.key()] = true
				entries = append(entries, entry)
			}
		}
		read += len(p.entries)
		fresh := entries[first:]
		if !paged && !p.last(number, read, paged) { // it does have pages, of a size that nobody asked for
			paged, number, read, entries, seen = true, 0, 0, nil, map[any]bool{}
			continue
		}
		if len(fresh) == 0 || p.last(number, read, paged) || past != nil && past(fresh) {
			break
		}
	}
	return entries, nil
}

// setPage asks for one page; they are counted from 1 (documented).
func (c *call) setPage(number int) {
	query := url.Values{}
	maps.Copy(query, c.query)
	query.Set("page", strconv.Itoa(number))
	query.Set("size", strconv.Itoa(PageSize))
	c.query = query
}

// last reports whether no page follows, as far as the page tells.
func (p page) last(number, read int, paged bool) bool {
	switch {
	case p.pages > 0 && number >= p.pages, p.total > 0 && read >= p.total:
		return true
	case p.pages > 0 || p.total > 0:
		return false
	}
	return !paged
}
