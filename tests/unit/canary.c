/* SPDX-License-Identifier: MIT */
/* A planted bug, to show that a checker is at work: scripts/ci/sanitize.sh wants to see it
 * reported. canary read: reads behind a block. canary add: overflows a signed integer. canary
 * branch: decides by a byte that nobody wrote. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    volatile int large = INT_MAX;
    char *volatile block = calloc(16, 1); /* volatile: its size is not known to the compiler */
    if (argc != 2 || block == NULL) return 3;
    if (argv[1][0] == 'r') return block[15 + argc];
    if (argv[1][0] == 'b') {
        char *volatile unwritten = malloc(16);
        if (unwritten == NULL) return 3;
        return unwritten[argc] == 77 ? puts("it is 77") : 0;
    }
    printf("%d\n", large + argc);
    return 0;
}
