/* SPDX-License-Identifier: MIT */
/* Every instruction set's exp and silu (kernels.c) against those of qwen3moe.c, bit by bit, for
 * every float32; so what functions.c proves of q3_exp and q3_silu holds for them too.
 * usage: maps */
#include "../../qwen3moe.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 1 << 16 };

/* The same bits, or both NaN. */
static uint64_t different(const double *got, const double *want)
{
    uint64_t count = 0;
    for (size_t i = 0; i < BLOCK; i++)
        count += memcmp(&got[i], &want[i], sizeof *got) != 0 &&
                 !(got[i] != got[i] && want[i] != want[i]);
    return count;
}

static uint64_t different_floats(const float *got, const float *want)
{
    uint64_t count = 0;
    for (size_t i = 0; i < BLOCK; i++) count += memcmp(&got[i], &want[i], sizeof *got) != 0;
    return count;
}

int main(void)
{
    static float x[BLOCK], silu[BLOCK], want_silu[BLOCK];
    static double wide[BLOCK], exps[BLOCK], want[BLOCK];
    uint64_t exp_wrong[8] = {0}, silu_wrong[8] = {0}, all = 0;
    size_t sets = 0;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += BLOCK) {
        for (size_t i = 0; i < BLOCK; i++) {
            uint32_t bits = (uint32_t)(u + i);
            memcpy(&x[i], &bits, sizeof bits);
            wide[i] = (double)x[i];
            want[i] = q3_exp(wide[i]);
            want_silu[i] = q3_round(q3_silu(wide[i]), Q3_F32);
        }
        const q3_kernels *set;
        for (sets = 0; (set = q3_kernels_available(sets + 1)) != NULL && sets < 8; sets++) {
            set->exp(exps, wide, BLOCK);
            set->silu(silu, x, BLOCK, Q3_F32);
            exp_wrong[sets] += different(exps, want);
            silu_wrong[sets] += different_floats(silu, want_silu);
        }
    }
    for (size_t s = 0; s < sets; s++) {
        const char *name = q3_kernels_available(s + 1)->name;
        printf("| exp of kernels.c, every float32 | %s | 4294967296 | %llu | %.0f |\n", name,
               (unsigned long long)exp_wrong[s], (double)clock() / CLOCKS_PER_SEC / (double)sets);
        printf("| silu of kernels.c, every float32 | %s | 4294967296 | %llu | |\n", name,
               (unsigned long long)silu_wrong[s]);
        all += exp_wrong[s] + silu_wrong[s];
    }
    return all != 0 || sets == 0;
}
