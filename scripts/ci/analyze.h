/* SPDX-License-Identifier: MIT */
/* analyze.h - what analyzers that read one file at a time do not see: functions of host/ that fill
 * an error never return Q3_OK. scripts/ci/analyze.py includes it before every file but those that
 * define them. */
#ifndef Q3_ANALYZE_H
#define Q3_ANALYZE_H

#include "host/json.h"
#include "host/text.h"

/* A macro is not expanded inside its own expansion: the function is called. */
#define q3_fail(error, status, ...) (q3_fail(error, status, __VA_ARGS__), (status))
#define q3_no_memory(...) (q3_no_memory(__VA_ARGS__), Q3_ERROR_MEMORY)
#define q3_json_fail(...) (q3_json_fail(__VA_ARGS__), Q3_ERROR_INPUT)

#endif
