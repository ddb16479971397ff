/* SPDX-License-Identifier: MIT */
/* One build of qwen3moe.c as a shared library that exports its table of functions. The source is
 * included, so that the parts before the last rounding can be seen; the loops that call it stand in
 * other programs, so that each function is tested as it was compiled on its own. */
#include "../../qwen3moe.c"
#include "under_test.h"

static void sin_parts(double x, double *high, double *low)
{
    double r, r_low;
    unsigned quadrant = (unsigned)reduce(x, &r, &r_low);
    (quadrant & 1 ? cos_series : sin_series)(r, r_low, high, low);
    if (quadrant & 2) *high = -*high, *low = -*low;
}

static void cos_parts(double x, double *high, double *low)
{
    double r, r_low;
    unsigned quadrant = (unsigned)reduce(x, &r, &r_low) + 1;
    (quadrant & 1 ? cos_series : sin_series)(r, r_low, high, low);
    if (quadrant & 2) *high = -*high, *low = -*low;
}

const under_test q3_under_test = {
    .round = q3_round,
    .exp = q3_exp,
    .silu = q3_silu,
    .sin = q3_sin,
    .cos = q3_cos,
    .log = q3_log,
    .pow = q3_pow,
    .sqrt = q3_sqrt,
    .widen = q3_widen,
    .silu_map = q3_silu_map,
    .linear = q3_linear,
    .attention_scores = q3_attention_scores,
    .attention_probs = q3_attention_probs,
    .router_probs = q3_router_probs,
    .rope_frequencies = q3_rope_frequencies,
    .exp_parts = exp_parts,
    .sin_parts = sin_parts,
    .cos_parts = cos_parts,
    .log_parts = log_parts,
};
