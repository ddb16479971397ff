/* SPDX-License-Identifier: MIT */
/* The checks of every C test: they count, print what failed, and set the exit status.
 * Used as: int main(void) { ...; return t_done("name"); } */
#ifndef Q3_T_H
#define Q3_T_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One counter pair per test program (each test is one translation unit). */
static struct { size_t run, failed; } t_count;

/* A failed condition prints file, line and text, and lets the test go on. NaN never passes as
 * long as bounds are written `!(error <= bound)` is a failure, so: CHECK(error <= bound). */
#define CHECK(condition) \
    do { \
        t_count.run++; \
        if (!(condition)) { \
            t_count.failed++; \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        } \
    } while (0)

/* The same with a printf text for the case at hand. */
#define CHECKF(condition, ...) \
    do { \
        t_count.run++; \
        if (!(condition)) { \
            t_count.failed++; \
            fprintf(stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr); \
        } \
    } while (0)

/* Two texts are equal; both are printed when they are not. */
#define CHECK_TEXT(got, want) \
    CHECKF(strcmp((got), (want)) == 0, "got \"%s\", want \"%s\"", (got), (want))

/* Nothing checked is a failure too. */
static int t_done(const char *name)
{
    printf("%s: %lu checks, %lu failed\n", name, (unsigned long)t_count.run,
           (unsigned long)t_count.failed);
    return t_count.failed != 0 || t_count.run == 0;
}

/* Called by Q3_CHECK in code built for the tests: prints, then stops the program. */
void q3_abort(const char *file, int line, const char *text);
void q3_abort(const char *file, int line, const char *text)
{
    fprintf(stderr, "%s:%d: broken precondition: %s\n", file, line, text);
    abort();
}

#endif
