/* SPDX-License-Identifier: MIT */
/* planted.c - programs that do one thing wrong where a call fails: each must be found. */
#include "faults/cases.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int refuse(const char *line)
{
    fprintf(stderr, "%s", line);
    return 2;
}

static const char *const no_memory = "qwen3moe: no memory\n", *const no_file = "qwen3moe: file\n";

/* One of two blocks stays where the other cannot be had. */
static int leaks(int argc, char **argv)
{
    (void)argc, (void)argv;
    char *volatile one = malloc(10), *volatile two = one != NULL ? malloc(20) : NULL;
    if (two == NULL) return refuse(no_memory);
    free(two);
    free(one);
    return 0;
}

static int uses_null(int argc, char **argv)
{
    (void)argc, (void)argv;
    volatile char *volatile block = malloc(10);
    block[3] = 1;
    free((void *)(uintptr_t)block);
    return 0;
}

/* Writes a file; of what closing it says nothing is told. */
static int loses_error(int argc, char **argv)
{
    FILE *file = fopen(argv[argc - 1], "wb");
    if (file == NULL) return refuse(no_file);
    bool ok = fwrite("1234", 1, 4, file) == 4;
    fclose(file);
    if (ok) return 0;
    remove(argv[argc - 1]);
    return refuse(no_file);
}

static int leaves_temporary(int argc, char **argv)
{
    const char *path = argv[argc - 1];
    FILE *file = fopen("temporary", "wb");
    if (file == NULL) return refuse(no_file);
    bool ok = fwrite("1234", 1, 4, file) == 4, closed = fclose(file) == 0;
    if (!ok || !closed) return refuse(no_file);
    if (rename("temporary", path) == 0) return 0;
    remove("temporary");
    return refuse(no_file);
}

static int leaves_open(int argc, char **argv)
{
    FILE *file = fopen(argv[argc - 1], "rb");
    void *block = file != NULL ? malloc(10) : NULL;
    if (block == NULL) return refuse(no_file);
    free(block);
    fclose(file);
    return 0;
}

/* A verdict from a fault. */
static int gives_verdict(int argc, char **argv)
{
    (void)argc, (void)argv;
    char *volatile block = malloc(10);
    if (block == NULL) return 1;
    free(block);
    return 0;
}

static int says_two_lines(int argc, char **argv)
{
    (void)argc, (void)argv;
    char *volatile block = malloc(10);
    if (block == NULL) return refuse("qwen3moe: no\nmemory\n");
    free(block);
    return 0;
}

static int says_nothing(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("4\n");
    fflush(stdout);
    return 0;
}

static int writes_input(int argc, char **argv)
{
    FILE *file = fopen(argv[argc - 1], "rb");
    if (file != NULL) {
        fclose(file);
        return 0;
    }
    file = fopen(argv[argc - 1], "ab");
    if (file != NULL) fclose(file);
    return refuse(no_file);
}

static int never_ends(int argc, char **argv)
{
    (void)argc, (void)argv;
    void *volatile block = malloc(10);
    while (block == NULL) block = NULL;
    free(block);
    return 0;
}

#define PLANTED(main, arguments, what) \
    {#main, main, arguments, 0, .extent = INJECT_EVERY, .planted = what}

const fault_case planted[] = {
    PLANTED(leaks, "", "memory is not given back"),
    PLANTED(uses_null, "", "a"), /* signal, or sanitizer's report */
    PLANTED(loses_error, "x", "an output is not the right one"),
    PLANTED(leaves_temporary, "x", "a file is left that nobody asked for"),
    PLANTED(leaves_open, "$I/text", "a file is not closed"),
    PLANTED(gives_verdict, "", "another exit status"),
    PLANTED(says_two_lines, "", "not one line on standard error"),
    PLANTED(says_nothing, "", "it succeeds, but standard output is another"),
    PLANTED(writes_input, "$I/text", "it writes where it reads"),
    PLANTED(never_ends, "", "it does not end"),
};
const size_t planted_count = COUNT(planted);
