/* SPDX-License-Identifier: MIT */
/* The functions of one build of qwen3moe.c, as a table that a shared library exports: several
 * builds (by compiler and by contraction) are then loaded side by side into one program. */
#ifndef Q3_UNDER_TEST_H
#define Q3_UNDER_TEST_H

#include "../../qwen3moe.h"

typedef struct under_test {
    float (*round)(double, q3_dtype);
    double (*exp)(double);
    double (*silu)(double);
    float (*sin)(float);
    float (*cos)(float);
    double (*log)(double);
    float (*pow)(float, float);
    double (*sqrt)(double);
    void (*widen)(float *, q3_tensor, size_t, size_t, q3_dtype);
    void (*silu_map)(float *, const float *, size_t, q3_dtype);
    void (*linear)(float *, const float *, q3_tensor, q3_tensor, size_t, size_t, size_t, q3_dtype);
    void (*attention_scores)(float *, const float *, const float *, size_t, size_t, size_t, size_t,
                             size_t, size_t, size_t, q3_dtype);
    void (*attention_probs)(float *, const float *, double *, size_t, size_t, size_t, size_t,
                            size_t, q3_dtype);
    void (*router_probs)(float *, const float *, size_t, size_t);
    float (*rope_frequencies)(float *, const q3_rope *, size_t, size_t, size_t);
    /* Results before their last rounding: value = (high + low) * 2^k. */
    void (*exp_parts)(double, double *high, double *low, int *k);
    void (*sin_parts)(double, double *high, double *low);
    void (*cos_parts)(double, double *high, double *low);
    void (*log_parts)(double, double *high, double *low);
} under_test;

extern const under_test q3_under_test;

/* The same table of the shared library at path; prints and exits if it cannot be loaded. */
const under_test *load_under_test(const char *path);

#endif
