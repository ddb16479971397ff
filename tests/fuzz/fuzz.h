/* SPDX-License-Identifier: MIT */
/* fuzz.h - what the fuzzers share. */
#ifndef Q3_TESTS_FUZZ_H
#define Q3_TESTS_FUZZ_H

#include "host/files.h"
#include "judge/judge.h"

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

/* A failure says why, in one line without control characters. */
void require_line(q3_status status, const q3_error *error);

/* A report has all its forms, and its lines are the same report. */
void require_forms(const q3_report *report);

/* backends.c */
void fuzz_backends(const uint8_t *data, size_t size);

#endif
