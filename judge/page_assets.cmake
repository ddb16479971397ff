# SPDX-License-Identifier: MIT
# judge/page_assets.c from judge/page.css and judge/page.js; it is in the repository, so that a plain
# `cc judge/*.c` needs no other step.
#
#   cmake -P judge/page_assets.cmake             writes it; to be done after every change of the two
#   cmake -DCHECK=ON -P judge/page_assets.cmake  fails if it is another (the test "page_assets")
#
# Comments stay behind: /* */ in the style, lines that begin with // in the script. In the style a
# blank line makes a new line, others are joined, and blanks that CSS does not need go; in the script
# blank lines go. A string literal for each line: the standard promises room for no more than 4095
# characters in one (C11 5.2.4.1).
cmake_minimum_required(VERSION 3.16)

# The text as C string literals, a line each, in a variable called `out`.
function(literals out text)
    string(REPLACE "\\" "\\\\" text "${text}")
    string(REPLACE "\"" "\\\"" text "${text}")
    string(REGEX REPLACE "([^\n]*)\n" "    \"\\1\\\\n\",\n" text "${text}")
    set(${out} "${text}" PARENT_SCOPE)
endfunction()

file(READ ${CMAKE_CURRENT_LIST_DIR}/page.css style)
string(ASCII 1 mark)
string(REGEX REPLACE "/\\*[^*]*\\*/\n" "" style "${style}")
string(REGEX REPLACE "\n\n+" "${mark}" style "${style}")
string(REGEX REPLACE "\n *" "" style "${style}")
string(REPLACE "${mark}" "\n" style "${style}\n")
string(REPLACE ";}" "}" style "${style}")
string(REGEX REPLACE "([:;,]) +" "\\1" style "${style}")
string(REGEX REPLACE " +([{>]) *" "\\1" style "${style}")
literals(style "${style}")

file(READ ${CMAKE_CURRENT_LIST_DIR}/page.js script)
string(REGEX REPLACE "\n//[^\n]*" "" script "\n${script}")
string(REGEX REPLACE "\n\n+" "\n" script "${script}")
string(REGEX REPLACE "^\n" "" script "${script}")
literals(script "${script}")

set(made "/* SPDX-License-Identifier: MIT */
/* page_assets.c - page.css and page.js as C; page_assets.cmake writes this file. */
#include \"judge/report.h\"

const char *const q3_page_style[] = {
${style}    NULL,
};

const char *const q3_page_script[] = {
${script}    NULL,
};
")
set(file ${CMAKE_CURRENT_LIST_DIR}/page_assets.c)
if(NOT CHECK)
    file(WRITE ${file} "${made}")
    return()
endif()
file(READ ${file} found)
if(NOT found STREQUAL made)
    message(FATAL_ERROR "judge/page_assets.c is not what page.css and page.js make: "
        "run cmake -P judge/page_assets.cmake")
endif()
