/* SPDX-License-Identifier: MIT */
/* A broken precondition goes to the function that -DQ3_ABORT names. Prints its text. */
#include "qwen3moe.h"

#include <stdio.h>
#include <stdlib.h>

void my_abort(const char *file, int line, const char *text);
void my_abort(const char *file, int line, const char *text)
{
    printf("%s:%s\n", line > 0 ? file : "no line", text);
    exit(0);
}

int main(void)
{
    q3_round(1.0, Q3_I32);
    return 1;
}
