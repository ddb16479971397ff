#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks the code on purpose, one place at a time (scripts/ci/mutants.txt), and fails unless a test notices
each time.

    scripts/ci/mutate.py [-j N] [--quick] [--slow] [--made K/M[:FILE,...]] [--alone] [--limit S]
                        [TEXT]...

-j N     so many mutants at once, each in a copy of the tree of its own (2)
--quick  only checks that each mutant's text stands in its file exactly once, and with --made that those of
         scripts/ci/survivors.txt exist: builds and runs nothing
--slow   prints the ten mutants that took longest, too
--made   also mutants made by rules (scripts/ci/made_mutants.py): slice K, from 0, of M slices, of all files or of
         those whose path begins with a FILE. Those that do not compile, or to the same code as without them or as
         another, are left out. Each other must be noticed or stand in scripts/ci/survivors.txt with the reason why
         no test can or need notice it; one that stands there must exist, and not be noticed
--limit  seconds of tests that a mutant meets at most, to find in little time what may survive (no limit)
--alone  the made ones without those of the list
TEXT     only the mutants whose line "FILE: what is wrong" holds one of them

Needs CMake, Ninja, a C compiler, and for --made what made_mutants.py needs. Works on copies in a temporary folder. Prints
a line for each mutant: seconds, the test that failed, the mutant. A mutant of the list that does not compile is an
error.

Where the time goes, and what keeps it short: the copies build the libraries as shared ones, so that a mutant
costs one compilation and one link; a test is stopped at the first check that fails; tests that never call the
function that a mutant changes are left out (if there are many mutants, and what made_mutants.py needs, they are run
once with libraries that say what is called); and the others
run one by one until one fails: first the one that the list names, for a mutant that else meets many before it, then
in the order of what they cost for the chance that they notice (class Order). A mutant that the first do not notice
meets every one. Those that compare with our own earlier bits (label "bits") come last: they see any change and cannot tell a
wrong one.
"""
import argparse, collections, glob, hashlib, json, os, re, resource, shutil, signal, subprocess, sys, tempfile
import threading, time

import made_mutants

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
FAILED = re.compile(rb"^\S+:\d+: (failed|broken precondition): ", re.M)  # tests/t.h
FLAGS = "-O2 -Werror=int-conversion -Werror=incompatible-pointer-types"  # arguments of other types show by themselves
# Whose functions are called too often to say so: every test may reach them.
INNER = ("qwen3moe.c", "kernels", "host/quant")
# Tests that are not run: they put functions in front of libc's, which reaches into no shared library.
WITHOUT = ("faults", "faults_planted")
MANY = 40  # mutants for which it pays to know what each test calls
EXPLAINED = 5.0  # seconds of tests that an explained survivor meets
LEFT_OUT = ("no code", "same code", "same as another")
BAD = ("NOT NOTICED", "NOTICED AFTER ALL", "DOES NOT COMPILE", "BROKEN RUN")
MEMORY = 4 << 30  # that a test's process may take for itself
WORK = os.path.join(tempfile.gettempdir(), f"mutate.{os.getpid()}")
Mutant = collections.namedtuple("Mutant", "name file old new first function at", defaults=[None])


def die(text):
    sys.exit(f"mutate.py: {text}")


def give_up(text):
    """Ends the program from any thread; the temporary folder goes, too."""
    print(f"mutate.py: {text}", file=sys.stderr, flush=True)
    shutil.rmtree(WORK, ignore_errors=True)
    os._exit(1)


# ---- the list ----

def read_list(path):
    """@ FILE: name, then lines of the old text behind "- " and of the new text behind "+ ", and maybe the test
    that is tried first behind "= "."""
    mutants = []
    for line in open(path, encoding="utf-8").read().split("\n"):
        kind, text = line[:1], line[2:]
        if line.startswith("@ "):
            mutants.append([text, text.split(": ")[0], [], [], None])
        elif line.startswith("= ") and mutants:
            mutants[-1][4] = text
        elif kind in ("-", "+") and mutants and line[1:2] in (" ", ""):
            mutants[-1][2 if kind == "-" else 3].append(text)
        elif kind not in ("#", ""):
            die(f"mutants.txt: not understood: {line}")
    return [Mutant(name, file, "\n".join(old), "\n".join(new), first, None) for name, file, old, new, first in mutants]


def read_survivors(path):
    """@ the name of a made mutant, then the reason why no test notices it: {name: reason}."""
    survivors, name = {}, None
    for line in open(path, encoding="utf-8").read().split("\n"):
        if line.startswith("@ "):
            name = line[2:]
            if name in survivors:
                die(f"survivors.txt: twice: {name}")
            survivors[name] = ""
        elif line.strip() and not line.startswith("#"):
            if name is None:
                die(f"survivors.txt: not understood: {line}")
            survivors[name] += line.strip()
    for name, reason in survivors.items():
        if not reason:
            die(f"survivors.txt: no reason: {name}")
    return survivors


def made(root):
    """The made mutants of the tree in root."""
    return [Mutant(x.name, x.file, "", x.new, None, x.function, (x.begin, x.end))
            for x in made_mutants.make_all(root)]


def place_listed(mutants, root):
    """The mutants of the list with the function that each changes."""
    functions = {file: made_mutants.functions(root, file) for file in {m.file for m in mutants}}

    def function(mutant):
        begin = open(os.path.join(root, mutant.file), encoding="utf-8").read().find(mutant.old)
        return next((name for name, first, end in functions[mutant.file]
                     if first <= begin and begin + len(mutant.old) <= end), None)
    return [m._replace(function=function(m)) for m in mutants]


def in_slice(mutant, part):
    """Whether it lies in slice "K/M" or "K/M:FILES"."""
    numbers, _, files = part.partition(":")
    k, m = (int(number) for number in numbers.split("/"))
    return k <= made_mutants.place(mutant.name) * m < k + 1 and mutant.file.startswith(tuple(files.split(",")))


def apply(mutant, folder):
    """The file's text with the mutant in it, or None unless the old text stands there exactly once."""
    try:
        text = open(os.path.join(folder, mutant.file), encoding="utf-8").read()
    except FileNotFoundError:
        return None
    if mutant.at is not None:
        text = text.encode()
        return (text[:mutant.at[0]] + mutant.new + text[mutant.at[1]:]).decode()
    if not mutant.old or text.count(mutant.old) != 1:
        return None
    return text.replace(mutant.old, mutant.new)


# ---- copies of the tree ----

def shared_libraries(text):
    """CMakeLists.txt with the private libraries shared and all their names visible."""
    text, count = re.subn(r"(add_library\(\w+) STATIC\b", r"\1 SHARED", text)
    if count == 0:
        die("CMakeLists.txt: found no STATIC library, expected those that the tests link")
    return re.sub(r"(VISIBILITY_PRESET) hidden", r"\1 default", text)


# What a test reaches: the libraries call this at each function's entry (-finstrument-functions), and the first time
# the name of the library and the function's place in it are written to the pipe that REACHED names (a file would
# meet the limits that tests set).
REACHED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
void __cyg_profile_func_enter(void *function, void *caller);
void __cyg_profile_func_exit(void *function, void *caller);
void __cyg_profile_func_enter(void *function, void *caller)
{
    static void *seen[1 << 14];
    size_t i = (size_t)((uintptr_t)function * 0x9E3779B97F4A7C15u >> 50);
    (void)caller;
    while (seen[i] != NULL && seen[i] != function) i = (i + 1) % (sizeof seen / sizeof seen[0]);
    if (seen[i] == function) return;
    seen[i] = function;
    const char *path = getenv("REACHED");
    int file = path != NULL ? open(path, O_WRONLY) : -1;
    Dl_info where;
    if (file < 0 || dladdr(function, &where) == 0) return;
    char line[512];
    const char *name = strrchr(where.dli_fname, '/');
    int n = snprintf(line, sizeof line, "%s %zx\n", name != NULL ? name + 1 : where.dli_fname,
                     (size_t)((char *)function - (char *)where.dli_fbase));
    if (write(file, line, (size_t)n) != n) abort();
    close(file);
}
void __cyg_profile_func_exit(void *function, void *caller)
{
    (void)function;
    (void)caller;
}
"""
REACHED_CMAKE = """
if(REACHED) # INNER, in mutate.py
    set_source_files_properties(${Q3_SOURCES} ${Q3_JUDGE} PROPERTIES COMPILE_OPTIONS -finstrument-functions)
    set_source_files_properties(qwen3moe.c kernels.c host/quants.c PROPERTIES COMPILE_OPTIONS "")
    target_sources(q3_loud PRIVATE reached.c)
endif()
"""


def copy_tree(where):
    def ignore(folder, names):
        return [n for n in names if n == ".git" or (folder == ROOT and n.startswith("build"))]
    shutil.copytree(ROOT, where, ignore=ignore, symlinks=True)


class Copy:
    """One copy of the tree with its own build, and the tests' commands in it."""

    def __init__(self, tree, where, reached):
        self.folder, self.build = where, os.path.join(where, "build")
        self.tests, self.dirty = {}, None
        self.right, self.code = {}, set()  # the libraries' objects without a mutant: their times, their digests
        shutil.copytree(tree, where, symlinks=True)
        lists = os.path.join(where, "CMakeLists.txt")
        text = shared_libraries(open(lists, encoding="utf-8").read())
        open(lists, "w", encoding="utf-8").write(text + REACHED_CMAKE)
        self.write("reached.c", REACHED)
        self.configure(reached)
        outputs = subprocess.run(["ninja", "-t", "targets", "all"], cwd=self.build, capture_output=True,
                                 text=True, check=True).stdout
        outputs = {line.rsplit(": ", 1)[0] for line in outputs.splitlines()}
        named = open(os.path.join(self.build, "CTestTestfile.cmake"), encoding="utf-8").read()
        named = set(re.findall(re.escape(self.build) + r"/([\w./+-]+)", named))
        self.targets = sorted((named & outputs) - {"test_faults"})  # the programs that tests start

    def configure(self, reached):
        self.says_reached = reached
        self.run("cmake", "-G", "Ninja", "-S", self.folder, "-B", self.build, "-DCMAKE_BUILD_TYPE=None",
                 f"-DCMAKE_C_FLAGS={FLAGS} -ffile-prefix-map={self.folder}=.",
                 "-DCMAKE_POSITION_INDEPENDENT_CODE=ON", "-DCMAKE_LINK_DEPENDS_NO_SHARED=ON",
                 f"-DREACHED={'ON' if reached else 'OFF'}")

    def ready(self):
        """Builds the libraries that the mutants change."""
        self.configure(False)
        said, self.code = self.compile()
        self.right = self.objects()
        if said is not None:
            give_up(f"does not build without any mutant:\n{said}")

    def prepare(self):
        """Builds all, and reads the tests' commands, which CTest knows once their programs are there."""
        said, _ = self.compile()
        if said is not None:
            give_up(f"does not build without any mutant:\n{said}")
        shown = subprocess.run(["ctest", "--show-only=json-v1"], cwd=self.build, capture_output=True,
                               check=True).stdout
        for test in json.loads(shown)["tests"]:
            if test["name"] in WITHOUT:
                continue
            properties = {p["name"]: p["value"] for p in test.get("properties", [])}
            self.tests[test["name"]] = (test["command"], properties)

    def objects(self):
        """Of each object file of the libraries: when it was written."""
        found = {}
        for library in ("q3_objects.dir", "q3_judge_objects.dir"):
            for folder, _, names in os.walk(os.path.join(self.build, "CMakeFiles", library)):
                paths = (os.path.join(folder, n) for n in names if n.endswith(".o"))
                found.update((p, os.stat(p).st_mtime_ns) for p in paths)
        return found

    def digests(self, paths):
        """What is in object files, under their names in the build."""
        return {(os.path.relpath(p, self.build), hashlib.sha256(open(p, "rb").read()).digest()) for p in paths}

    def run(self, *command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            die(f"{' '.join(command)}:\n{done.stdout.decode(errors='replace')}")

    def compile(self):
        """None, or what the compiler said; and the object files that are not the right code's, with their digests."""
        done = subprocess.run(["ninja", "-j", "1", *self.targets], cwd=self.build, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode != 0:
            return done.stdout.decode(errors="replace"), frozenset()
        now = self.objects()
        return None, frozenset(self.digests([p for p in now if now[p] != self.right.get(p)]) - self.code)

    def functions(self):
        """{(library, place): function} of the libraries that say what is reached."""
        found = {}
        for name in os.listdir(self.build):
            if name.endswith(".so"):
                shown = subprocess.run(["nm", "--defined-only", os.path.join(self.build, name)], capture_output=True,
                                       text=True, check=True).stdout
                for place, kind, function in (line.split() for line in shown.splitlines()):
                    if kind in "tT":
                        found[name, int(place, 16)] = function.split(".")[0]
        return found

    def put(self, file, text):
        """Writes a file; what the last mutant changed in another file is taken back first."""
        if self.dirty is not None and self.dirty[0] != file:
            self.write(*self.dirty)
            self.dirty = None
        path = os.path.join(self.folder, file)
        if self.dirty is None:
            self.dirty = (file, open(path, encoding="utf-8").read())
        self.write(file, text)

    def write(self, file, text):
        with open(os.path.join(self.folder, file), "w", encoding="utf-8") as f:
            f.write(text)

    def test(self, name, limit, reached=None):
        """Runs a test in an empty folder: whether it passed, its seconds of processor time, its output.

        limit is the processor time that one process may take; a test is stopped at its first failed check."""
        command, properties = self.tests[name]
        environment = dict(os.environ, **dict(v.split("=", 1) for v in properties.get("ENVIRONMENT", [])))
        environment.pop("QWEN3_TOKENIZER_JSON", None)
        if reached is not None:
            environment["REACHED"] = reached

        def restrain():
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        with tempfile.TemporaryDirectory(dir=self.folder) as where:
            child = subprocess.Popen(command, cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                                     preexec_fn=restrain)
            timer = threading.Timer(60 + 20 * limit, os.killpg, (child.pid, signal.SIGKILL))
            timer.start()
            said = b""
            while block := os.read(child.stdout.fileno(), 65536):
                said += block
                if FAILED.search(said):
                    break
            stopped = FAILED.search(said) is not None
            if stopped:
                try:
                    os.killpg(child.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = status
            timer.cancel()
            child.stdout.close()
        code = os.waitstatus_to_exitcode(status)
        passed = not stopped and (code == 0 or code == int(properties.get("SKIP_RETURN_CODE", 0)))
        return passed, usage.ru_utime + usage.ru_stime, said.decode(errors="replace")


# ---- the run ----

class Order:
    """Which test comes first: the one that costs least for what it can be expected to notice.

    Per file and test, and per folder: how many mutants it met, how many it noticed, and the time that took. The
    chance of the next is (noticed + p) / (met + 1), where p is the folder's, and the folder's own p is 0.2; a test
    that notices stops early, one that does not runs to its end."""

    def __init__(self, times, last):
        self.times, self.last = times, sorted(last)
        self.seen = collections.defaultdict(lambda: [0, 0, 0.0])
        self.lock = threading.Lock()

    def cost(self, file, test):
        whole, chance = self.times[test] + 0.02, 0.2
        early = whole
        for place in (os.path.dirname(file), file):
            met, noticed, spent = self.seen[place, test]
            chance = (noticed + chance) / (met + 1)
            early = spent / noticed if noticed else early
        return (chance * early + (1 - chance) * whole) / chance

    def next(self, file, tests):
        with self.lock:
            left = [t for t in tests if t not in self.last]
            if left:
                return min(left, key=lambda t: self.cost(file, t))
        return min(tests, default=None)

    def met(self, file, test, noticed, seconds):
        with self.lock:
            for place in (os.path.dirname(file), file):
                seen = self.seen[place, test]
                seen[0] += 1
                if noticed:
                    seen[1] += 1
                    seen[2] += seconds


def tests_inside(tree, tests):
    """{file: the tests that include it}, which call its functions and not the library's."""
    inside = collections.defaultdict(set)
    for test, (command, _) in tests.items():
        for path in glob.glob(os.path.join(tree, "tests", "*", os.path.basename(command[0]) + ".c")):
            for file in re.findall(r'^#include "([\w/]+\.c)"', open(path, encoding="utf-8").read(), re.M):
                inside[file].add(test)
    return inside


def read_pipe(pipe, lines):
    """Adds what comes to lines, up to a line "end"."""
    said = b""
    while not said.endswith(b"end\n"):
        said += os.read(pipe, 65536)
    lines += said.decode().splitlines()[:-1]


def baseline(copies):
    """Runs the tests without a mutant, one in each copy at a time: seconds of each, and which functions of the
    libraries each reaches. Each must pass."""
    times, reached, queue, lock = {}, {}, collections.deque(copies[0].tests), threading.Lock()
    where = os.path.join(WORK, "reached")
    os.mkdir(where)

    def run(copy):
        functions = copy.functions() if copy.says_reached else {}
        while True:
            with lock:
                if not queue:
                    return
                name = queue.popleft()
            path, lines = os.path.join(where, name), []
            os.mkfifo(path)
            pipe = os.open(path, os.O_RDWR)
            reader = threading.Thread(target=read_pipe, args=(pipe, lines))
            reader.start()
            passed, times[name], said = copy.test(name, 600, path)
            os.write(pipe, b"end\n")
            reader.join()
            os.close(pipe)
            if not passed:
                give_up(f"{name} fails without any mutant:\n{said}")
            places = (line.split() for line in lines)
            reached[name] = {functions.get((library, int(place, 16)), "?") for library, place in places}

    in_each(copies, run)
    known = {f for copy in copies if copy.says_reached for f in copy.functions().values()}
    return times, reached, known


def in_each(copies, function):
    threads = [threading.Thread(target=function, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Run:
    """All mutants, tried in copies of the tree: results are (seconds, test or outcome, mutant)."""

    def __init__(self, tree, options, survivors, wanted):
        self.tree, self.survivors, self.limit = tree, survivors, options.limit
        reached = sum(m.function is not None for m in wanted) > MANY
        self.copies = [Copy(tree, os.path.join(WORK, str(k)), reached) for k in range(options.j)]
        in_each(self.copies, Copy.prepare)
        self.times, self.reached, self.known = baseline(self.copies)
        in_each(self.copies, Copy.ready)
        self.bits = {n for n, (_, p) in self.copies[0].tests.items() if "bits" in p.get("LABELS", [])}
        self.order = Order(self.times, self.bits)
        self.inside = tests_inside(tree, self.copies[0].tests)
        self.results, self.lock = [], threading.Lock()
        self.codes = set()  # what made mutants compiled to

    def same(self, mutant, changed):
        """Whether a made mutant's code is the right one's, or another's."""
        if mutant.at is None:
            return None
        if not changed:
            return "same code"
        with self.lock:
            if changed in self.codes:
                return "same as another"
            self.codes.add(changed)
        return None

    def who_reaches(self, mutant):
        """The tests that may notice a mutant: those that call its function, where that can be known."""
        if mutant.file.startswith(INNER) or mutant.function not in self.known:
            return set(self.times)
        return {test for test in self.times if mutant.function in self.reached[test]} | self.inside[mutant.file]

    def try_one(self, copy, mutant):
        copy.put(mutant.file, apply(mutant, self.tree))
        said, changed = copy.compile()
        if said is not None:
            return ("no code", "") if mutant.at is not None else ("DOES NOT COMPILE", said)
        same = self.same(mutant, changed)
        if same is not None:
            return same, ""
        tests, name, spent = self.who_reaches(mutant), mutant.first, 0.0
        limit = EXPLAINED if mutant.name in self.survivors else self.limit
        while name is not None or (name := self.order.next(mutant.file, tests)) is not None:
            if spent > limit:
                break
            passed, seconds, _ = copy.test(name, int(3 + 4 * self.times[name]))
            self.order.met(mutant.file, name, not passed, seconds)
            spent += seconds
            if not passed:
                return name if mutant.name not in self.survivors else "NOTICED AFTER ALL", ""
            tests.discard(name)
            name = None
        return "explained" if mutant.name in self.survivors else "NOT NOTICED", ""

    def all(self, wanted):
        # The mutants of a file follow each other, so that a copy compiles its file once a mutant.
        queue = collections.deque(sorted(wanted, key=lambda m: m.file))

        def worker(copy):
            while True:
                with self.lock:
                    if not queue:
                        return
                    mutant = queue.popleft()
                start = time.monotonic()
                try:
                    killer, said = self.try_one(copy, mutant)
                except Exception as error:  # a worker that dies would leave mutants untried in silence
                    killer, said = "BROKEN RUN", repr(error)
                with self.lock:
                    self.results.append((time.monotonic() - start, killer, mutant))
                    print(f"{said}{self.results[-1][0]:6.1f} s  {killer:<16}  {mutant.name}", flush=True)

        in_each(self.copies, worker)


def read_arguments():
    parser = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    parser.add_argument("-j", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--made", metavar="K/M")
    parser.add_argument("--limit", type=float, default=1e9)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("text", nargs="*", default=[""])
    return parser.parse_args()


def find_stale(listed, all_made, survivors, root):
    """Says what of the two lists does not fit the source; how many that are."""
    stale = [f"mutants.txt: {m.name}: its text must stand in the file exactly once"
             for m in listed if apply(m, root) is None]
    if all_made is not None:
        stale += [f"survivors.txt: there is no mutant {name}"
                  for name in sorted(survivors.keys() - {m.name for m in all_made})]
    for line in stale:
        print(line)
    return len(stale)


def summary(options, results, bits, wanted, seconds):
    """Prints what came out; the exit status."""
    bad = [r for r in results if r[1] in BAD]
    if options.slow:
        for seconds_of_one, killer, mutant in sorted(results, key=lambda r: -r[0])[:10]:
            print(f"slow: {seconds_of_one:6.1f} s  {killer:<16}  {mutant.name}")
    for _, killer, mutant in bad:
        print(f"{killer}: {mutant.name}")
    print(f"noticed by our own earlier bits alone: {sum(r[1] in bits for r in results)}")
    if options.made:
        count = collections.Counter(killer for _, killer, mutant in results if mutant.at is not None)
        left_out = sum(count[k] for k in LEFT_OUT)
        explained, tried = count["explained"], sum(count.values()) - left_out
        noticed = sum(n for k, n in count.items() if k not in (*LEFT_OUT, *BAD, "explained"))
        print(f"made by rules: {sum(count.values())} in slice {options.made}; {count['no code']} do not compile, "
              f"{count['same code']} are the same code, {count['same as another']} the same as another; of the other "
              f"{tried} {noticed} noticed ({noticed / max(tried, 1):.1%}), {explained} explained")
    listed = [r for r in results if r[2].at is None]
    noticed = sum(r[1] not in BAD for r in listed)
    print(f"mutants: {noticed} noticed, {sum(m.at is None for m in wanted) - noticed} not, "
          f"of {sum(m.at is None for m in wanted)}; {seconds:.0f} s")
    return 0 if len(results) == len(wanted) and not bad else 1


def main():
    options = read_arguments()
    begin = time.monotonic()
    os.mkdir(WORK)
    try:
        tree = os.path.join(WORK, "tree")  # as it is now; the checkout may change meanwhile
        copy_tree(tree)
        lists = os.path.join(tree, "scripts", "ci")
        survivors = read_survivors(os.path.join(lists, "survivors.txt"))
        listed = [] if options.alone else read_list(os.path.join(lists, "mutants.txt"))
        listed = [m for m in listed if any(text in m.name for text in options.text)]
        all_made = made(tree) if options.made else None
        stale = find_stale(listed, all_made, survivors, tree)
        wanted = listed if stale else place_listed(listed, tree)
        if options.made:
            wanted += [m for m in all_made if in_slice(m, options.made) and any(t in m.name for t in options.text)]
        print(f"{len(wanted)} mutants, {stale} lines stale")
        if stale or not wanted:
            return 1
        if options.quick:
            return 0
        run = Run(tree, options, survivors, wanted)
        print("tests, s: " + " ".join(f"{n} {t:.2f}" for n, t in sorted(run.times.items(), key=lambda i: i[1])))
        for m in wanted:
            if m.first is not None and m.first not in run.times:
                give_up(f"mutants.txt: {m.name}: there is no test {m.first}")
        print(f"ready after {time.monotonic() - begin:.0f} s", flush=True)
        run.all(wanted)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return summary(options, run.results, run.bits, wanted, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
