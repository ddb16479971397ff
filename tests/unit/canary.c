/* SPDX-License-Identifier: MIT */
/* A planted bug, to show that a checker is at work: scripts/ci/sanitize.sh wants to see it
 * reported. canary read: reads behind a block. canary add: overflows a signed integer. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    volatile int large = INT_MAX;
    char *volatile block = calloc(16, 1); /* volatile: its size is not known to the compiler */
    if (argc != 2 || block == NULL) return 3;
    if (argv[1][0] == 'r') return block[15 + argc];
    printf("%d\n", large + argc);
    return 0;
}
