package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of the CPU times in /proc/PID/stat on Linux.
const clockTick = time.Second / 100

// processes is the measured server: its root processes and whatever descends
// from them at the moment of a reading.
type processes struct{ roots []int }

// cpuUsage is the CPU time used so far.
type cpuUsage struct{ cpu time.Duration }

func (u cpuUsage) since(before cpuUsage) cpuUsage { return cpuUsage{u.cpu - before.cpu} }

// findProcesses reads a comma-separated list of process ids and pid files.
func findProcesses(list string) (processes, error) {
	var p processes
	for field := range strings.SplitSeq(list, ",") {
		if field == "" {
			continue
		}
		pid, err := strconv.Atoi(field)
		if err != nil {
			text, err := os.ReadFile(field)
			if err != nil {
				return p, err
			}
			if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
				return p, fmt.Errorf("%s: not a pid file", field)
			}
		}
		p.roots = append(p.roots, pid)
	}
	return p, nil
}

// stat is what this program needs of /proc/PID/stat.
type stat struct {
	parent int
	own    time.Duration // user and system time of the process
	reaped time.Duration // the same of its children that were waited for
}

func readStat(pid int) (stat, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	// The command name may hold spaces; the fields after its closing
	// parenthesis start with the third, the state.
	end := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[end+1:]))
	if end < 0 || len(fields) < 15 {
		return stat{}, false
	}
	number := func(field int) int64 {
		n, _ := strconv.ParseInt(fields[field-3], 10, 64)
		return n
	}
	own := runTime(pid)
	if own == 0 { // a kernel without schedstat
		own = time.Duration(number(14)+number(15)) * clockTick
	}
	return stat{
		parent: int(number(4)),
		own:    own,
		reaped: time.Duration(number(16)+number(17)) * clockTick,
	}, true
}

// runTime returns the time that the threads of a process have run: exact, where
// /proc/PID/stat has ticks of 10 ms. A thread that has ended is not in it.
func runTime(pid int) (sum time.Duration) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		first, _, _ := strings.Cut(string(text), " ")
		ns, _ := strconv.ParseInt(first, 10, 64)
		sum += time.Duration(ns)
	}
	return sum
}

// tree returns the roots and all their descendants.
func (p processes) tree() map[int]stat {
	tree := map[int]stat{}
	if len(p.roots) == 0 {
		return tree
	}
	all := map[int]stat{}
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if s, ok := readStat(pid); ok {
			all[pid] = s
			children[s.parent] = append(children[s.parent], pid)
		}
	}
	var add func(pid int)
	add = func(pid int) {
		if s, ok := all[pid]; ok {
			tree[pid] = s
			for _, child := range children[pid] {
				add(child)
			}
		}
	}
	for _, root := range p.roots {
		add(root)
	}
	return tree
}

func (p processes) usage() cpuUsage {
	var u cpuUsage
	for _, s := range p.tree() {
		u.cpu += s.own + s.reaped
	}
	return u
}

// memory returns the proportional set size of all processes in KiB, which
// counts a page shared by n processes as 1/n, and the number of processes.
func (p processes) memory() (kib int64, count int) {
	for pid := range p.tree() {
		n, err := pss(pid)
		if err != nil {
			continue
		}
		kib += n
		count++
	}
	return kib, count
}

func pss(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		}
	}
	return 0, fmt.Errorf("no Pss line for process %d", pid)
}
