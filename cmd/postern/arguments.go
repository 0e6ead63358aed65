package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// nameArguments makes cmd and all commands below it report arguments by the names that
// their Use lines give them: those that are missing, and one too many.
func nameArguments(cmd *cobra.Command) {
	if cmd.Runnable() {
		check := cmd.Args
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := checkUse(cmd, args); err != nil {
				return err
			}
			if check == nil {
				return nil
			}
			return check(cmd, args)
		}
	}
	for _, c := range cmd.Commands() {
		nameArguments(c)
	}
}

// checkSubcommand returns an error if args name a subcommand that a command without a
// task of its own does not have: cobra would print that command's help, as a success.
func checkSubcommand(root *cobra.Command, args []string) error {
	cmd, rest, err := root.Find(args)
	if err != nil || cmd == root || cmd.Runnable() || len(rest) == 0 || strings.HasPrefix(rest[0], "-") {
		return nil // ExecuteContext reports it
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return fmt.Errorf("unknown command %q for %q; use %s", rest[0], cmd.CommandPath(), enumerate(names, "or"))
}

// checkUse returns an error unless args and the flags of cmd have what its Use line
// requires, and args no more than the line has.
func checkUse(cmd *cobra.Command, args []string) error {
	_, line, _ := strings.Cut(cmd.Use, " ")
	usage := strings.TrimSpace(cmd.CommandPath() + " " + line)
	var missing []string
	given := 0
	for _, group := range alternatives(cmd, optional.ReplaceAllString(line, "")) {
		switch {
		case slices.ContainsFunc(group, func(a alternative) bool { return a.flag != "" && cmd.Flags().Changed(a.flag) }):
		case slices.ContainsFunc(group, func(a alternative) bool { return a.flag == "" }) && given < len(args):
			given++
		default:
			missing = append(missing, oneOf(group))
		}
	}
	if missing != nil {
		return fmt.Errorf("missing %s: %s", strings.Join(missing, " and "), usage)
	}
	most := 0
	for _, group := range alternatives(cmd, brackets.Replace(line)) {
		if slices.ContainsFunc(group, func(a alternative) bool { return a.flag == "" }) {
			most++
		}
	}
	if len(args) > most && !strings.Contains(line, "...") {
		return fmt.Errorf("unexpected argument %q: %s", args[most], usage)
	}
	return nil
}

var (
	optional = regexp.MustCompile(`\[[^\]]*\]`) // part of a Use line
	brackets = strings.NewReplacer("[", "", "]", "")
)

// An alternative is an argument of a Use line, or a flag with its value.
type alternative struct{ text, flag string }

// alternatives splits a Use line: "FILE | --all BACKEND" is two arguments, the first one
// of two alternatives.
func alternatives(cmd *cobra.Command, line string) (groups [][]alternative) {
	words := strings.Fields(line)
	joined := false
	for i := 0; i < len(words); i++ {
		if words[i] == "|" {
			joined = true
			continue
		}
		a := alternative{text: words[i]}
		if name, isFlag := strings.CutPrefix(words[i], "--"); isFlag {
			a.flag = name
			if f := cmd.Flags().Lookup(name); f != nil && f.NoOptDefVal == "" && i+1 < len(words) {
				i++
				a.text += " " + words[i]
			}
		}
		if joined && groups != nil {
			groups[len(groups)-1] = append(groups[len(groups)-1], a)
		} else {
			groups = append(groups, []alternative{a})
		}
		joined = false
	}
	return groups
}

func oneOf(group []alternative) string {
	var texts []string
	for _, a := range group {
		texts = append(texts, a.text)
	}
	return enumerate(texts, "or")
}

// enumerate writes names as a list in a sentence: "a, b or c".
func enumerate(names []string, last string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " " + last + " " + names[len(names)-1]
}

// A longDuration is a flag for a time.Duration, which is also written in days or weeks.
type longDuration time.Duration

// durationFlag adds a flag for a time.Duration to cmd: 90m, 12h, 31d or 2w.
func durationFlag(cmd *cobra.Command, name string, standard time.Duration, usage string) *time.Duration {
	d := longDuration(standard)
	cmd.Flags().Var(&d, name, usage)
	return (*time.Duration)(&d)
}

// Set parses text as a number of days (31d) or weeks (2w), or as time.ParseDuration does.
func (d *longDuration) Set(text string) error {
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		number, found := strings.CutSuffix(text, unit)
		n, err := strconv.ParseUint(number, 10, 16)
		if found && err == nil {
			*d = longDuration(n) * longDuration(length)
			return nil
		}
	}
	n, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("not a duration; write 90m, 12h, 31d or 2w")
	}
	*d = longDuration(n)
	return nil
}

// String writes d as Set reads it.
func (d *longDuration) String() string {
	const day = 24 * time.Hour
	n := time.Duration(*d)
	if n >= day && n%day == 0 {
		return strconv.Itoa(int(n/day)) + "d"
	}
	text := n.String()
	for _, zero := range []string{"m0s", "h0m"} { // 1h0m0s is 1h
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// Type names the kind of the flag in help.
func (d *longDuration) Type() string { return "duration" }
