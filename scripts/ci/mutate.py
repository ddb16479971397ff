#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks the code on purpose, one place at a time (scripts/ci/mutants.txt), and fails unless a test notices
each time.

    scripts/ci/mutate.py [-j N] [--quick] [--slow] [TEXT]...

-j N     so many mutants at once, each in a copy of the tree of its own (2)
--quick  only checks that each mutant's text stands in its file exactly once: builds and runs nothing
--slow   prints the ten mutants that took longest, too
TEXT     only the mutants whose line "FILE: what is wrong" holds one of them

Needs CMake, Ninja and a C compiler. Works on copies in a temporary folder. Prints a line for each mutant:
seconds, the test that failed, the mutant. A mutant that does not compile is an error.

Where the time goes, and what keeps it short: the copies build the libraries as shared ones, so that a mutant
costs one compilation and one link; a test is stopped at the first check that fails; and tests run one by one
until one fails: first the one that the list names, for a mutant that else meets many before it, then in the order of
what they cost for the chance that they notice (class Order). A mutant that the first do not notice meets every
test. Those that compare with our own earlier bits (label "bits") come last: they see any change and cannot tell a
wrong one.
"""
import argparse, collections, json, os, re, resource, shutil, signal, subprocess, sys, tempfile, threading, time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
FAILED = re.compile(rb"^\S+:\d+: (failed|broken precondition): ", re.M)  # tests/t.h
WORK = os.path.join(tempfile.gettempdir(), f"mutate.{os.getpid()}")
Mutant = collections.namedtuple("Mutant", "name file old new first")


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
    return [Mutant(name, file, "\n".join(old), "\n".join(new), first) for name, file, old, new, first in mutants]


def apply(mutant, folder):
    """The file's text with the mutant in it, or None unless the old text stands there exactly once."""
    try:
        text = open(os.path.join(folder, mutant.file), encoding="utf-8").read()
    except FileNotFoundError:
        return None
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


def copy_tree(where):
    def ignore(folder, names):
        return [n for n in names if n == ".git" or (folder == ROOT and n.startswith("build"))]
    shutil.copytree(ROOT, where, ignore=ignore, symlinks=True)


class Copy:
    """One copy of the tree with its own build, and the tests' commands in it."""

    def __init__(self, tree, where):
        self.folder, self.build = where, os.path.join(where, "build")
        self.tests, self.dirty = {}, None
        shutil.copytree(tree, where, symlinks=True)
        lists = os.path.join(where, "CMakeLists.txt")
        text = shared_libraries(open(lists, encoding="utf-8").read())
        open(lists, "w", encoding="utf-8").write(text)
        self.run("cmake", "-G", "Ninja", "-S", where, "-B", self.build, "-DCMAKE_BUILD_TYPE=None",
                 "-DCMAKE_C_FLAGS=-O2", "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
                 "-DCMAKE_LINK_DEPENDS_NO_SHARED=ON")
        outputs = subprocess.run(["ninja", "-t", "targets", "all"], cwd=self.build, capture_output=True,
                                 text=True, check=True).stdout
        outputs = {line.rsplit(": ", 1)[0] for line in outputs.splitlines()}
        named = open(os.path.join(self.build, "CTestTestfile.cmake"), encoding="utf-8").read()
        named = set(re.findall(re.escape(self.build) + r"/([\w./+-]+)", named))
        self.targets = sorted(named & outputs)  # the programs that tests start

    def prepare(self):
        """Builds all, and reads the tests' commands, which CTest knows once their programs are there."""
        said = self.compile()
        if said is not None:
            give_up(f"does not build without any mutant:\n{said}")
        shown = subprocess.run(["ctest", "--show-only=json-v1"], cwd=self.build, capture_output=True,
                               check=True).stdout
        for test in json.loads(shown)["tests"]:
            properties = {p["name"]: p["value"] for p in test.get("properties", [])}
            self.tests[test["name"]] = (test["command"], properties)

    def run(self, *command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            die(f"{' '.join(command)}:\n{done.stdout.decode(errors='replace')}")

    def compile(self):
        """None, or what the compiler said."""
        done = subprocess.run(["ninja", "-j", "1", *self.targets], cwd=self.build, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        return None if done.returncode == 0 else done.stdout.decode(errors="replace")

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

    def test(self, name, limit):
        """Runs a test in an empty folder: whether it passed, its seconds of processor time, its output.

        limit is the processor time that one process may take; a test is stopped at its first failed check."""
        command, properties = self.tests[name]
        environment = dict(os.environ, **dict(v.split("=", 1) for v in properties.get("ENVIRONMENT", [])))
        environment.pop("QWEN3_TOKENIZER_JSON", None)
        with tempfile.TemporaryDirectory(dir=self.folder) as where:
            child = subprocess.Popen(command, cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)))
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

    def next(self, file, tried):
        with self.lock:
            left = [t for t in self.times if t not in tried and t not in self.last]
            if left:
                return min(left, key=lambda t: self.cost(file, t))
        return next((t for t in self.last if t not in tried), None)

    def met(self, file, test, noticed, seconds):
        with self.lock:
            for place in (os.path.dirname(file), file):
                seen = self.seen[place, test]
                seen[0] += 1
                if noticed:
                    seen[1] += 1
                    seen[2] += seconds


def baseline(copies):
    """Runs the tests without a mutant, one in each copy at a time: seconds of each. Each must pass."""
    times, queue, lock = {}, collections.deque(copies[0].tests), threading.Lock()

    def run(copy):
        while True:
            with lock:
                if not queue:
                    return
                name = queue.popleft()
            passed, times[name], said = copy.test(name, 600)
            if not passed:
                give_up(f"{name} fails without any mutant:\n{said}")

    in_each(copies, run)
    return times


def in_each(copies, function):
    threads = [threading.Thread(target=function, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main():
    parser = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    parser.add_argument("-j", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("text", nargs="*", default=[""])
    options = parser.parse_args()
    wanted = [m for m in read_list(os.path.join(ROOT, "scripts", "ci", "mutants.txt"))
              if any(text in m.name for text in options.text)]
    stale = [m for m in wanted if apply(m, ROOT) is None]
    for m in stale:
        print(f"mutants.txt: {m.name}: its text must stand in the file exactly once")
    print(f"{len(wanted)} mutants, {len(stale)} of them stale")
    if stale or not wanted:
        return 1
    if options.quick:
        return 0

    begin = time.monotonic()
    work = WORK
    os.mkdir(work)
    try:
        tree = os.path.join(work, "tree")  # as it is now; the checkout may change meanwhile
        copy_tree(tree)
        copies = [Copy(tree, os.path.join(work, str(k))) for k in range(options.j)]
        in_each(copies, Copy.prepare)
        times = baseline(copies)
        print("tests, s: " + " ".join(f"{n} {t:.2f}" for n, t in sorted(times.items(), key=lambda i: i[1])))
        for m in wanted:
            if m.first is not None and m.first not in times:
                give_up(f"mutants.txt: {m.name}: there is no test {m.first}")
        bits = {n for n, (_, p) in copies[0].tests.items() if "bits" in p.get("LABELS", [])}
        order = Order(times, bits)
        print(f"ready after {time.monotonic() - begin:.0f} s", flush=True)

        # The mutants of a file follow each other, so that a copy compiles its file once a mutant.
        queue = collections.deque(sorted(wanted, key=lambda m: m.file))
        results, lock = [], threading.Lock()

        def try_one(copy, mutant):
            copy.put(mutant.file, apply(mutant, tree))
            said = copy.compile()
            if said is not None:
                return "DOES NOT COMPILE", said
            tried, name = set(), mutant.first
            while name is not None or (name := order.next(mutant.file, tried)) is not None:
                passed, seconds, _ = copy.test(name, int(5 + 4 * times[name]))
                order.met(mutant.file, name, not passed, seconds)
                if not passed:
                    return name, ""
                tried.add(name)
                name = None
            return "NOT NOTICED", ""

        def worker(copy):
            while True:
                with lock:
                    if not queue:
                        return
                    mutant = queue.popleft()
                start = time.monotonic()
                try:
                    killer, said = try_one(copy, mutant)
                except Exception as error:  # a worker that dies would leave mutants untried in silence
                    killer, said = "BROKEN RUN", repr(error)
                with lock:
                    results.append((time.monotonic() - start, killer, mutant.name))
                    print(f"{said}{results[-1][0]:6.1f} s  {killer:<16}  {mutant.name}", flush=True)

        in_each(copies, worker)
    finally:
        shutil.rmtree(work, ignore_errors=True)

    bad = [r for r in results if r[1] in ("NOT NOTICED", "DOES NOT COMPILE", "BROKEN RUN")]
    alone = sum(r[1] in bits for r in results)
    if options.slow:
        for seconds, killer, name in sorted(results, reverse=True)[:10]:
            print(f"slow: {seconds:6.1f} s  {killer:<16}  {name}")
    for seconds, killer, name in bad:
        print(f"{killer}: {name}")
    print(f"noticed by our own earlier bits alone: {alone}")
    print(f"mutants: {len(results) - len(bad)} noticed, {len(wanted) - len(results) + len(bad)} not, "
          f"of {len(wanted)}; {time.monotonic() - begin:.0f} s")
    return 0 if len(results) == len(wanted) and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
