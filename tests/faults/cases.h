/* SPDX-License-Identifier: MIT */
/* cases.h - what runs with each of its calls failing. */
#ifndef Q3_TESTS_FAULTS_CASES_H
#define Q3_TESTS_FAULTS_CASES_H

#include "faults/inject.h"

/* The exit status of a sanitizer's report; none of the command's. */
#define SANITIZER_STATUS 99

typedef struct fault_case {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *arguments;     /* words between blanks; $I begins a path of an input */
    int status;                /* without a fault */
    inject_extent extent;
    bool small;                /* it takes a second at most */
    const char *input;         /* the input that is standard input; NULL: nothing */
    const char *unfinished;    /* the beginning of names that may stay after an error */
    const char *planted;       /* what must be found, of a program with a planted fault */
    struct { const char *from, *to; } before[3]; /* inputs that stand in its folder */
} fault_case;

extern const fault_case cases[], planted[];
extern const size_t case_count, planted_count;

/* How the inputs are made: by the shell, where $G is golden/, then by the command. */
typedef struct made_input {
    const char *arguments;
    int status;
    size_t sync; /* its process ends at this call of fsync; 0: at its end */
} made_input;

extern const char *const shell_lines[];
extern const made_input made[];
extern const size_t shell_line_count, made_count;

/* A folder whose two shards hold the tensors of a file. */
void shard(const char *file, const char *folder);

int command_main(int argc, char **argv);
/* Goes on after an error, without one. */
int command_again(int argc, char **argv);
/* Programs that use the libraries (library.c). */
int library_main(int argc, char **argv);
int judge_main(int argc, char **argv);

#endif
