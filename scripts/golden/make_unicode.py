# SPDX-License-Identifier: MIT
"""Writes unicode.h: the tables nfc.c needs, from the Unicode character database.

    python3 scripts/golden/make_unicode.py UCD_FOLDER > host/unicode.h

UCD_FOLDER holds UnicodeData.txt, DerivedAge.txt and CompositionExclusions.txt of Unicode 15.0.0
(Debian's package unicode-data, or ucd/ of that version). Needs Python alone; with unicodedata2 16.0.0
installed the classes are compared with it for every code point.

Two versions of Unicode meet in the reference (Hugging Face tokenizers 0.23): its regex engine has
the classes of 16.0, its normaliser the tables of 9.0. So: the general categories of 15.0 plus what
15.1 and 16.0 added, and the canonical decompositions and combining classes of the code points whose
age is at most 9.0.
"""
import os
import sys

# Letters and numbers that are in 16.0 but not in 15.0; nothing has left these classes since.
NEW_LETTERS = """1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D4A-10D65 10D6F-10D85 10EC2-10EC4
 11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 11BC0-11BE0 13460-143FA 16100-1611D
 16D40-16D6C 18CFF 1E5D0-1E5ED 1E5F0 2EBF0-2EE5D"""
NEW_NUMBERS = """10D40-10D49 116D0-116E3 11BF0-11BF9 16130-16139 16D70-16D79 1CCF0-1CCF9
 1E5F1-1E5FA"""
# White_Space is the same in all versions since 6.3.
SPACES = "9-D 20 85 A0 1680 2000-200A 2028-2029 202F 205F 3000"


def ranges(text):
    for item in text.split():
        first, _, last = item.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def fields(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        for line in file:
            line = line.split("#")[0].strip()
            if line:
                yield [field.strip() for field in line.split(";")]


def read(folder):
    category, combining, decomposition = {}, {}, {}
    age = {}
    for span, version in fields(folder, "DerivedAge.txt"):
        for code in ranges(span.replace("..", "-")):
            age[code] = tuple(map(int, version.split(".")))
    first = None
    for row in fields(folder, "UnicodeData.txt"):
        code = int(row[0], 16)
        if row[1].endswith(", First>"):
            first = code
            continue
        for c in range(first if row[1].endswith(", Last>") else code, code + 1):
            category[c] = row[2][0]
        if age[code] > (9, 0):
            continue
        if row[3] != "0":
            combining[code] = int(row[3])
        if row[5] and not row[5].startswith("<"):
            decomposition[code] = [int(x, 16) for x in row[5].split()]
    excluded = {int(row[0], 16) for row in fields(folder, "CompositionExclusions.txt")}
    return category, combining, decomposition, excluded


def join(codes, key=lambda code: None):
    """Ascending codes as [first, last, key] of runs with equal keys."""
    runs = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == key(code):
            runs[-1][1] = code
        else:
            runs.append([code, code, key(code)])
    return runs


def table(comment, declaration, items):
    lines, line = ["", f"/* {comment} */", f"static const {declaration} = {{"], "   "
    for item in items:
        if len(line) + len(item) > 98:
            lines.append(line)
            line = "   "
        line += f" {item},"
    print("\n".join(lines + [line, "};"]))


def main():
    category, combining, decomposition, excluded = read(sys.argv[1])
    letters = {c for c in category if category[c] == "L"} | set(ranges(NEW_LETTERS))
    numbers = {c for c in category if category[c] == "N"} | set(ranges(NEW_NUMBERS))
    spaces = set(ranges(SPACES))
    try:
        import unicodedata2
        assert unicodedata2.unidata_version == "16.0.0"
        for c in range(0x110000):
            have = "L" if c in letters else "N" if c in numbers else "-"
            want = unicodedata2.category(chr(c))[0]
            assert have == (want if want in "LN" else "-"), hex(c)
        print("classes equal unicodedata2 16.0.0", file=sys.stderr)
    except ImportError:
        print("unicodedata2 is not installed: classes not compared", file=sys.stderr)
    # Composition leaves out the listed exclusions, singletons, and pairs whose result or first
    # element is not a starter.
    composed = sorted((*pair, code) for code, pair in decomposition.items()
                      if len(pair) == 2 and code not in excluded
                      and code not in combining and pair[0] not in combining)
    assert (len(letters), len(numbers), len(spaces)) == (141028, 1911, 25)
    assert (len(combining), len(decomposition), len(composed)) == (814, 2060, 940)
    print("""/* SPDX-License-Identifier: MIT AND Unicode-3.0 */
/* Unicode tables of nfc.c, written by scripts/golden/make_unicode.py; not edited by hand.
 * Classes are Unicode 16.0's, normalisation is Unicode 9.0's, as in Hugging Face tokenizers
 * 0.23. */
#ifndef Q3_UNICODE_H
#define Q3_UNICODE_H

#include <stdint.h>""")
    for name, comment, codes in (("letters", "General_Category L*: first, last.", letters),
                                 ("numbers", "General_Category N*: first, last.", numbers),
                                 ("spaces", "White_Space: first, last.", spaces)):
        runs = join(codes)
        table(comment, f"uint32_t q3_unicode_{name}[{len(runs)}][2]",
              [f"{{0x{a:X}, 0x{b:X}}}" for a, b, _ in runs])
    runs = join(combining, combining.get)
    table("Canonical_Combining_Class other than 0: first, last, class.",
          f"uint32_t q3_unicode_marks[{len(runs)}][3]",
          [f"{{0x{a:X}, 0x{b:X}, {k}}}" for a, b, k in runs])
    table("Canonical decompositions, one step: code point, first, second (0: none); ascending.",
          f"uint32_t q3_unicode_decompositions[{len(decomposition)}][3]",
          ["{" + ", ".join(f"0x{x:X}" for x in ([c] + d + [0])[:3]) + "}"
           for c, d in sorted(decomposition.items())])
    place = {code: i for i, code in enumerate(sorted(decomposition))}
    table("The decompositions that composition undoes, as places in the table above, in ascending\n"
          " * order of first and second.", f"uint16_t q3_unicode_compositions[{len(composed)}]",
          [str(place[code]) for _, _, code in composed])
    print("\n#endif")


main()
