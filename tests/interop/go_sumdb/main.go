// Checks p2pnode's checkpoints and proofs with Go's own x/mod/sumdb: one JSON document in, one line out.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type checkpoint struct {
	Note string
	Size int64
	Root string
}

type inclusion struct {
	Size, Index int64
	Entry, Root string
	Proof       []string
	Bad         bool
}

type consistency struct {
	First, Second         int64
	FirstRoot, SecondRoot string
	Proof                 []string
	Bad                   bool
}

type document struct {
	Vkey          string
	Checkpoints   []checkpoint
	Inclusions    []inclusion
	Consistencies []consistency
}

func unhex(text string) []byte {
	raw, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return raw
}

func hash(text string) (value tlog.Hash) {
	copy(value[:], unhex(text))
	return value
}

func hashes(texts []string) (values []tlog.Hash) {
	for _, text := range texts {
		values = append(values, hash(text))
	}
	return values
}

func fail(format string, arguments ...any) {
	fmt.Printf(format+"\n", arguments...)
	os.Exit(1)
}

func main() {
	var given document
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		fail("input: %v", err)
	}
	verifier, err := note.NewVerifier(given.Vkey)
	if err != nil {
		fail("vkey: %v", err)
	}
	for _, c := range given.Checkpoints {
		opened, err := note.Open([]byte(c.Note), note.VerifierList(verifier))
		if err != nil {
			fail("checkpoint %d: %v", c.Size, err)
		}
		if _, err := note.Open([]byte(c.Note[:len(c.Note)-7]+"AAAAAA\n"), note.VerifierList(verifier)); err == nil {
			fail("checkpoint %d: a forged signature was accepted", c.Size)
		}
		var origin, root string
		var size int64
		if n, err := fmt.Sscanf(opened.Text, "%s\n%d\n%s\n", &origin, &size, &root); n != 3 || err != nil {
			fail("checkpoint %d: its text is %q", c.Size, opened.Text)
		}
		if origin != verifier.Name() || size != c.Size || root != hash(c.Root).String() {
			fail("checkpoint %d: it says %s %d %s", c.Size, origin, size, root)
		}
	}
	for _, i := range given.Inclusions {
		err := tlog.CheckRecord(hashes(i.Proof), i.Size, hash(i.Root), i.Index, tlog.RecordHash(unhex(i.Entry)))
		if (err == nil) == i.Bad {
			fail("inclusion of %d in %d: bad is %v, error is %v", i.Index, i.Size, i.Bad, err)
		}
	}
	for _, c := range given.Consistencies {
		err := tlog.CheckTree(hashes(c.Proof), c.Second, hash(c.SecondRoot), c.First, hash(c.FirstRoot))
		if (err == nil) == c.Bad {
			fail("consistency of %d and %d: bad is %v, error is %v", c.First, c.Second, c.Bad, err)
		}
	}
	fmt.Printf("ok: %d checkpoints, %d inclusion and %d consistency proofs\n",
		len(given.Checkpoints), len(given.Inclusions), len(given.Consistencies))
}
