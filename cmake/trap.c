/* SPDX-License-Identifier: MIT */
/* trap.c - what a broken precondition does in the libraries that are installed: the default of
 * qwen3moe.h. Their objects are the command's too, which prints first; so they call q3_abort. */
#include "qwen3moe.h"

void q3_abort(const char *file, int line, const char *text);
void q3_abort(const char *file, int line, const char *text)
{
    (void)file, (void)line, (void)text;
    Q3_ABORT(file, line, text);
}
