package uidl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// A hex64 is a fingerprint, as 16 hexadecimal digits.
type hex64 uint64

// MarshalText implements encoding.TextMarshaler.
func (p hex64) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(p)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *hex64) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil || len(text) != 16 {
		return fmt.Errorf("%q is no fingerprint of 16 hexadecimal digits", text)
	}
	*p = hex64(n)
	return nil
}

type entryJSON struct {
	UID      uint32 `json:"uid"`
	UIDL     string `json:"uidl,omitempty"`
	Short    hex64  `json:"short,omitempty"`
	Header   hex64  `json:"header,omitempty"`
	Vanished Day    `json:"vanished,omitempty"`
}

type generationJSON struct {
	UIDValidity uint32      `json:"uidvalidity"`
	UIDNext     uint32      `json:"uidnext,omitempty"`
	Since       Day         `json:"since,omitempty"`
	Seen        Day         `json:"seen,omitempty"`
	Eras        []Era       `json:"eras"`
	Messages    []entryJSON `json:"messages,omitempty"`
	Named       []entryJSON `json:"named,omitempty"` // only read: the messages in exports of earlier versions
}

type recordJSON struct {
	generationJSON
	Past       []uint32         `json:"past,omitempty"`
	Renumbered uint32           `json:"renumbered,omitempty"` // if not the length of Past
	Before     []generationJSON `json:"before,omitempty"`
}

// MarshalJSON implements json.Marshaler. It writes the current generation, and the earlier
// ones in "before". All generations must be loaded.
func (r *Record) MarshalJSON() ([]byte, error) {
	var j recordJSON
	for i, g := range r.Generations {
		one := generationJSON{UIDValidity: g.UIDValidity, UIDNext: g.UIDNext, Since: g.Since, Seen: g.Seen, Eras: g.Eras}
		for _, e := range g.Entries {
			one.Messages = append(one.Messages, entryJSON{e.UID, e.UIDL, hex64(e.Short), hex64(e.Header), e.Vanished})
		}
		if i == 0 {
			j.generationJSON = one
		} else {
			j.Before = append(j.Before, one)
		}
	}
	j.Past = r.Past
	if int(r.SuffixesGiven) != len(r.Past) {
		j.Renumbered = r.SuffixesGiven
	}
	return json.Marshal(j)
}

// UnmarshalJSON implements json.Unmarshaler. It reads the output of MarshalJSON, and
// exports of earlier versions, which have only the names of the current generation.
func (r *Record) UnmarshalJSON(b []byte) error {
	var j recordJSON
	if err := unmarshalStrict(b, &j); err != nil {
		return err
	}
	*r = Record{Past: j.Past, SuffixesGiven: max(j.Renumbered, uint32(len(j.Past)))}
	for _, one := range append([]generationJSON{j.generationJSON}, j.Before...) {
		if one.Messages != nil && one.Named != nil {
			return errors.New(`there are both "messages" and "named"`)
		}
		g := &Generation{UIDValidity: one.UIDValidity, UIDNext: one.UIDNext, Since: one.Since, Seen: one.Seen, Eras: one.Eras, loaded: true}
		for _, e := range append(one.Messages, one.Named...) {
			if e.UIDL == "" && one.Named != nil {
				return fmt.Errorf("UID %d has no unique-id", e.UID)
			}
			if e.Vanished > maxDay {
				return errors.New("a day is too late")
			}
			g.Entries = append(g.Entries, Entry{e.UID, e.UIDL, uint64(e.Short), uint64(e.Header), e.Vanished})
		}
		r.Generations = append(r.Generations, g)
	}
	return nil
}

// unmarshalStrict is json.Unmarshal with an error for unknown fields.
func unmarshalStrict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// MarshalText implements encoding.TextMarshaler.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Format) UnmarshalText(text []byte) (err error) {
	*f, err = Parse(string(text))
	return err
}
