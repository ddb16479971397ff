#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Mutants made from the source by rules, for scripts/ci/mutate.py --made; by itself it only counts or lists them.

    scripts/ci/made_mutants.py [--list] [TEXT]...

--list   prints each mutant's name
TEXT     only those whose name holds one of them

Needs tree_sitter and tree_sitter_c (PyPI): what is code, a comment, a string, a line of the preprocessor is
their finding. Only bodies of functions are changed. Left alone:

- Q3_CHECK and static_assert: no caller within the contract can notice;
- strings: their bytes are messages, which the tests read where they matter;
- the step of a `for` (a loop that never ends is noticed, and takes long), and free() as a whole statement (what
  leaks is found by scripts/ci/sanitize.sh);
- files that scripts write: tables of characters, of grids, of the page.

A mutant's name is "FILE FUNCTION: RULE #N: LINE": N counts what has the same file, function, rule and line, from
1. It does not change when lines move. Its hash decides which slice it is in, so that a slice stays the same one
while the source around it changes.
"""
import argparse, collections, glob, hashlib, os, re, sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
WRITTEN = ("host/unicode.h", "host/quant_grids.h", "judge/page_assets.c")  # by scripts
Made = collections.namedtuple("Made", "name file function begin end new")  # bytes [begin, end) become `new`

BINARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "+",
          "/": "*", "%": "*", "<<": ">>", ">>": "<<", "&": "|", "|": "&", "^": "&", "&&": "||", "||": "&&"}
ASSIGN = {"+=": "-=", "-=": "+=", "*=": "+=", "/=": "*=", "%=": "*=", "|=": "&=", "&=": "|=", "^=": "|=",
          "<<=": ">>=", ">>=": "<<="}
# What the parser takes for something else: blanks or names of the same length are put in its place.
HIDDEN = re.compile(rb"\b(UNROLL|INLINE|TARGET|Q3_HIDDEN|Q3_API)\b")
NAMED = re.compile(rb"\bNAME\((\w+)\)")


def sources(root):
    found = ["qwen3moe.c", "kernels.c", "tokenizer.c"]
    for pattern in ("kernels_*.h", "host/*.[ch]", "judge/*.[ch]"):
        found += glob.glob(pattern, root_dir=root)
    return sorted(f for f in set(found) if f not in WRITTEN)


def words(node):
    return node.text.decode()


def number(text):
    """What a number becomes: one more, one less."""
    whole = re.fullmatch(r"(0[xX][0-9a-fA-F]+|-?\d+)([uUlL]*)", text)
    if whole:
        digits, suffix = whole.groups()
        value = int(digits, 16) if digits[:2] in ("0x", "0X") else int(digits, 8 if re.match("0[0-7]", digits) else 10)
        form = (lambda v: f"0x{v:X}") if digits[:2] in ("0x", "0X") else str
        return [form(v) + suffix for v in (value + 1, value - 1) if v >= 0 or value < 0]
    fraction = re.fullmatch(r"(\d*\.\d*)(f?)", text)
    if fraction:
        return [repr(float(fraction[1]) + step) + fraction[2] for step in (1.0, -1.0)]
    return [f"(2 * {text})"]


def function_name(node):
    inner = node.child_by_field_name("declarator")
    while inner is not None and inner.type != "identifier":
        inner = inner.child_by_field_name("declarator")
    return words(inner) if inner is not None else "?"


class Maker:
    """Walks one file."""

    def __init__(self, root, file, parser):
        self.file = file
        with open(os.path.join(root, file), "rb") as f:
            self.source = f.read()
        shown = NAMED.sub(lambda m: b"NAME_" + m[1] + b"_", self.source)
        shown = HIDDEN.sub(lambda m: b" " * len(m[0]), shown)
        self.made, self.functions, self.function, self.result = [], [], None, "int"
        self.top(parser.parse(shown).root_node)

    def top(self, node):
        for child in node.children:
            if child.type == "function_definition":
                self.function = function_name(child)
                kind = child.child_by_field_name("type")
                self.result = words(kind) if kind is not None else "int"
                if child.child_by_field_name("declarator").type == "pointer_declarator":
                    self.result = "pointer"
                body = child.child_by_field_name("body")
                if body is not None:
                    self.functions.append((self.function, body.start_byte, body.end_byte))
                    self.walk(body)
            elif child.type.startswith("preproc_if") or child.type in ("preproc_else", "preproc_elif"):
                self.top(child)

    def add(self, rule, begin, end, new):
        kept = b"\n" * self.source.count(b"\n", begin, end)  # no other line moves: lines are in messages
        self.made.append((self.function, rule, begin, end, new.encode() + kept))

    def replace(self, rule, node, new):
        self.add(rule, node.start_byte, node.end_byte, new)

    def text(self, node):
        return self.source[node.start_byte:node.end_byte].decode()

    def walk(self, node):
        if node.type in ("ERROR", "preproc_def", "preproc_function_def", "preproc_include", "comment", "string_literal",
                         "concatenated_string", "sizeof_expression", "static_assert_declaration"):
            return
        if node.type == "expression_statement" and re.match(r"(Q3_CHECK|assert)\b", self.text(node)):
            return
        visit = getattr(self, "on_" + node.type, None)
        if visit is not None:
            visit(node)
        step = node.child_by_field_name("update") if node.type == "for_statement" else None
        for child in node.named_children:
            if step is None or child.start_byte != step.start_byte:
                self.walk(child)

    def on_binary_expression(self, node):
        operator = node.child_by_field_name("operator")
        new = BINARY.get(operator.type)
        if new is None:
            return
        self.replace(f"{operator.type} to {new}", operator, new)
        if operator.type in ("&&", "||"):
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            self.add("left side alone", left.end_byte, node.end_byte, "")
            self.add("right side alone", node.start_byte, right.start_byte, "")

    def on_assignment_expression(self, node):
        operator = node.child_by_field_name("operator")
        if operator.type in ASSIGN:
            self.replace(f"{operator.type} to {ASSIGN[operator.type]}", operator, ASSIGN[operator.type])

    def on_update_expression(self, node):
        operator = node.child_by_field_name("operator")
        new = {"++": "--", "--": "++"}[operator.type]
        self.replace(f"{operator.type} to {new}", operator, new)

    def on_unary_expression(self, node):
        operator = node.child_by_field_name("operator")
        if operator.type in ("-", "~", "!"):
            self.replace(f"no {operator.type}", operator, "")

    def condition(self, node):
        """node: without its brackets."""
        text = self.text(node)
        self.replace("negated", node, f"!({text})")
        self.replace("never", node, "0")

    def on_if_statement(self, node):
        inner = node.child_by_field_name("condition")
        if len(inner.named_children) == 1:
            self.condition(inner.named_children[0])

    def on_conditional_expression(self, node):
        self.condition(node.child_by_field_name("condition"))
        other = node.child_by_field_name("alternative")
        if other is not None:
            self.add("never the other", node.child_by_field_name("condition").start_byte,
                     node.child_by_field_name("condition").end_byte, "1")

    def on_number_literal(self, node):
        for new in number(self.text(node)):
            self.replace(f"{self.text(node)} to {new}", node, new)

    def on_char_literal(self, node):
        self.replace(f"{self.text(node)} + 1", node, f"({self.text(node)} + 1)")

    def on_true(self, node):
        self.replace("true to false", node, "false")

    def on_false(self, node):
        self.replace("false to true", node, "true")

    def on_expression_statement(self, node):
        if not node.named_children:
            return
        inner = node.named_children[0]
        if inner.type == "call_expression" and re.match(r"free\b", self.text(inner)):
            return
        if inner.type in ("call_expression", "assignment_expression", "update_expression"):
            self.replace("no statement", node, ";")

    def on_break_statement(self, node):
        self.replace("no break", node, ";")

    def on_continue_statement(self, node):
        self.replace("no continue", node, ";")

    def on_return_statement(self, node):
        if not node.named_children:
            self.replace("no return", node, ";")
            return
        value = node.named_children[0]
        text = self.text(value)
        for new in ("false", "true") if self.result == "bool" else ("0", "1"):
            if text == new or (text == "NULL" and new == "0") or (self.result == "pointer" and new == "1"):
                continue
            if text in ("true", "false") or value.type == "number_literal":
                continue  # on_true, on_false, on_number_literal
            self.replace(f"return {new}", value, new)

    def on_argument_list(self, node):
        values = [v for v in node.named_children if v.type != "comment"]
        for left, right in zip(values, values[1:]):
            if self.text(left) != self.text(right) and left.type != "string_literal" and right.type != "string_literal":
                between = self.source[left.end_byte:right.start_byte].decode()
                self.add(f"{words(left)} and {words(right)} swapped", left.start_byte, right.end_byte,
                         (self.text(right) + between + self.text(left)).replace("\n", " "))

    def on_cast_expression(self, node):
        self.add(f"no cast ({words(node.child_by_field_name('type'))})", node.start_byte,
                 node.child_by_field_name("value").start_byte, "")

    def named(self):
        """The mutants, each with its name."""
        counts = collections.Counter()
        for function, rule, begin, end, new in self.made:
            first = self.source.rfind(b"\n", 0, begin) + 1
            line = self.source[first:self.source.find(b"\n", begin)].decode()
            name = re.sub(r"\s+", " ", f"{self.file} {function}: {rule} #%: {line.strip()}")
            counts[name] += 1
            yield Made(name.replace("#%", f"#{counts[name]}", 1), self.file, function, begin, end, new)


def new_parser():
    """None where there is none."""
    try:
        import tree_sitter, tree_sitter_c
    except ImportError:
        return None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))


def make_all(root):
    """All mutants of all files, those of a file in the order of their places."""
    parser = new_parser()
    if parser is None:
        sys.exit("made_mutants.py: needs tree_sitter and tree_sitter_c: pip install tree-sitter tree-sitter-c")
    return [mutant for file in sources(root) for mutant in Maker(root, file, parser).named()]


def functions(root, file):
    """(name, begin, end) of the bodies of a file's functions, in characters; none without a parser."""
    parser = new_parser()
    if parser is None:
        return []
    maker = Maker(root, file, parser)
    return [(name, len(maker.source[:begin].decode()), len(maker.source[:end].decode()))
            for name, begin, end in maker.functions]


def place(name):
    """Where in [0, 1) a mutant lies: by its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def main():
    parser = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("text", nargs="*", default=[""])
    options = parser.parse_args()
    wanted = [m for m in make_all(ROOT) if any(text in m.name for text in options.text)]
    if options.list:
        for mutant in wanted:
            print(mutant.name)
    for file, count in collections.Counter(m.file for m in wanted).items():
        print(f"{count:6}  {file}")
    print(f"{len(wanted):6}  in all")
    if len({m.name for m in wanted}) != len(wanted):
        sys.exit("made_mutants.py: two mutants have one name")


if __name__ == "__main__":
    main()
