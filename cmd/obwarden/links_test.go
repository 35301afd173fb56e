package main

import (
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// frontPageLimit is what somebody reads who has heard of obwarden a minute ago. All
// else stands in the README of its room.
const frontPageLimit = 10 << 10

func TestTheFrontPageIsShort(t *testing.T) {
	t.Parallel()
	if size := len(readDocument(t, frontPage)); size > frontPageLimit {
		t.Errorf("%s has %d bytes, want %d at most: move details to the README of their room", frontPage, size, frontPageLimit)
	}
}

// Every relative link leads to a file of the repository, and to a heading of it where
// it names one.
func TestLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	n := 0
	for _, document := range repositoryFiles(t, ".md") {
		for _, target := range relativeLinks(readDocument(t, document)) {
			n++
			file, anchor, _ := strings.Cut(target, "#")
			file, err := url.PathUnescape(file)
			if err != nil {
				t.Errorf("%s: link %s: %v", document, target, err)
				continue
			}
			to := document
			if file != "" {
				to = path.Join(path.Dir(document), file)
			}
			if strings.HasPrefix(to, "..") {
				t.Errorf("%s: link %s leads out of the repository", document, target)
				continue
			}
			if _, err := os.Stat(filepath.Join(repository, to)); err != nil {
				t.Errorf("%s: link %s leads nowhere: %v", document, target, err)
				continue
			}
			if anchor != "" && !anchors(readDocument(t, to))[anchor] {
				t.Errorf("%s: link %s: %s has no such heading", document, target, to)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d links in all documents, want 20 or more: are they still found?", n)
	}
}

var (
	codeBlocks = regexp.MustCompile("(?ms)^```.*?^```$")
	codeSpans  = regexp.MustCompile("`[^`\n]*`")
	links      = regexp.MustCompile(`\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)`)
	headings   = regexp.MustCompile(`(?m)^#{1,6} +(.+?)\s*$`)
	schemes    = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)
)

// relativeLinks are the targets of a document's links and pictures, those to other
// sites apart.
func relativeLinks(text string) []string {
	text = codeSpans.ReplaceAllString(codeBlocks.ReplaceAllString(text, ""), "")
	var targets []string
	for _, m := range links.FindAllStringSubmatch(text, -1) {
		if !schemes.MatchString(m[1]) {
			targets = append(targets, m[1])
		}
	}
	return targets
}

// anchors are the names that GitHub gives to a document's headings: in lower case,
// without punctuation, with hyphens for blanks, and numbered where they repeat.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range headings.FindAllStringSubmatch(codeBlocks.ReplaceAllString(text, ""), -1) {
		heading := regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(m[1], "$1") // a link's text alone
		name := strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r) || unicode.IsNumber(r) || r == '-' || r == '_':
				return unicode.ToLower(r)
			case r == ' ':
				return '-'
			}
			return -1
		}, heading)
		anchor := name
		for n := 1; found[anchor]; n++ {
			anchor = name + "-" + strconv.Itoa(n)
		}
		found[anchor] = true
	}
	return found
}

func TestLinksAndAnchorsAreFound(t *testing.T) {
	t.Parallel()
	const text = "# One (and more)\n\n[a](b.md#c) ![d](e.svg) [f](https://example.com) [g](#one-and-more) `[h](i)`\n\n" +
		"```sh\n# no heading\n[j](k)\n```\n\n## `OB_X`, [link](l.md)\n\n## Twice\n\n## Twice\n"
	if got := strings.Join(relativeLinks(text), " "); got != "b.md#c e.svg #one-and-more l.md" {
		t.Errorf("links %s", got)
	}
	for _, want := range []string{"one-and-more", "ob_x-link", "twice", "twice-1"} {
		if !anchors(text)[want] {
			t.Errorf("no anchor %s in %v", want, anchors(text))
		}
	}
	if len(anchors(text)) != 4 {
		t.Errorf("anchors %v, want 4", anchors(text))
	}
}
