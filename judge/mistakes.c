/* mistakes.c - the list of known mistakes, in the order of the operators; of those that explain a tensor equally
 * well, the one that stands first. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <string.h>

/* The same mistake in queries and keys, then in one of them. */
static void attempt_pair(diagnosis *d, q3_tap_id q, q3_tap_id k, mistake_kind kind, double value, const char *text)
{
    q3_attempt(d, TAP_BIT(q) | TAP_BIT(k), kind, value, "%s", text);
    if (d->e->id <= Q3_TAP_K_ROPE) return;
    q3_attempt(d, TAP_BIT(k), kind, value, "%s, keys only", text);
    q3_attempt(d, TAP_BIT(q), kind, value, "%s, queries only", text);
}

/* "" for the tensor in question, else its operator's name and a colon. */
static const char *operator_name(char name[Q3_TAP_NAME_SIZE + 4], const evidence *e, q3_tap_id id)
{
    char full[Q3_TAP_NAME_SIZE], *at = full;
    name[0] = 0;
    if (id == e->id) return name;
    q3_tap_name(full, id, e->layer);
    if (strncmp(full, "model.layers.", 13) == 0) at = strchr(full + 13, '.') + 1;
    char *end = strrchr(at, '.');
    if (end != NULL) *end = 0;
    snprintf(name, Q3_TAP_NAME_SIZE + 4, "%s: ", at);
    return name;
}

/* ==== The list ================================================================================= */

/* As --accumulate calls them. */
static const struct { format f; const char *name; } formats[] = {
    {FORMAT_BF16, "bf16"}, {FORMAT_TF32, "tf32"}, {FORMAT_TF32_AWAY, "tf32"}, {FORMAT_TF32_CUT, "tf32"},
    {FORMAT_F16, "f16"}, {FORMAT_FP8, "fp8"},
};
#define FORMATS (sizeof formats / sizeof formats[0])
static const struct { format f; const char *name; } halves[2] = {
    {FORMAT_BF16, "bfloat16"}, {FORMAT_F16, "float16"},
};

static void try_embedding(diagnosis *d)
{
    uint64_t at = TAP_BIT(Q3_TAP_EMBED_TOKENS);
    q3_attempt(d, at, EMBED_SCALED, 1, "embedding scaled by sqrt(hidden_size) in the run's dtype");
    q3_attempt(d, at, EMBED_SCALED, 0, "embedding scaled by sqrt(hidden_size)");
    q3_attempt(d, at, EMBED_ROW, 1, "embedding row of id + 1");
    q3_attempt(d, at, EMBED_ROW, -1, "embedding row of id - 1");
}

static void try_table(diagnosis *d)
{
    static const double thetas[] = {1e4, 1e6, 5e6, 1e7, 5e5, 1e5, 1e3};
    static const char *const types[] = {"", "linear", "dynamic", "yarn", "llama3"};
    const evidence *e = d->e;
    const q3_rope *rope = &e->config->rope;
    uint64_t at = TAP_BIT(Q3_TAP_COS) | TAP_BIT(Q3_TAP_SIN);
    double derived = (double)e->config->max_position_embeddings;
    q3_attempt(d, at, TABLE_OFFSET, 1, "position off by one (the first is %zu)", e->start + 1);
    if (e->start > 0) {
        q3_attempt(d, at, TABLE_OFFSET, -1, "position off by one (the first is %zu)", e->start - 1);
        q3_attempt(d, at, TABLE_FROM_ZERO, 0, "positions from 0 though the run starts at %zu", e->start);
    }
    q3_attempt(d, at, TABLE_CONSTANT, (double)e->start, "position %zu for all tokens", e->start);
    q3_attempt(d, at, TABLE_CONSTANT, 0, "position 0 for all tokens");
    if (rope->type != Q3_ROPE_DEFAULT)
        q3_attempt(d, at, TABLE_UNSCALED, 0, "RoPE scaling (%s) ignored", types[rope->type]);
    if (rope->type == Q3_ROPE_YARN) q3_attempt(d, at, TABLE_NO_FACTOR, 0, "YaRN's attention factor missing");
    if (rope->original_max_position_embeddings > 0) derived /= rope->original_max_position_embeddings;
    if (rope->type != Q3_ROPE_DEFAULT && derived >= 1 && derived < 1e4)
        q3_attempt(d, at, TABLE_FACTOR, derived,
                "RoPE scaling factor %.9g instead of %.9g (of max_position_embeddings)", derived, rope->factor);
    for (size_t i = 0; i < sizeof thetas / sizeof thetas[0]; i++)
        if (thetas[i] != rope->rope_theta)
            q3_attempt(d, at, TABLE_THETA, thetas[i], "rope_theta %.9g instead of %.9g", thetas[i], rope->rope_theta);
    for (size_t i = 0; i < 2; i++) {
        const char *name = halves[i].name;
        q3_attempt(d, at, TABLE_FREQUENCY_FORMAT, halves[i].f, "inverse frequencies rounded to %s", name);
        q3_attempt(d, at, TABLE_POSITION_FORMAT, halves[i].f, "positions rounded to %s", name);
        q3_attempt(d, at, TABLE_FORMAT, halves[i].f, "cos and sin rounded to %s", name);
    }
    q3_attempt(d, at, TABLE_SWAPPED, 0, "cos and sin swapped");
}

static void try_rope(diagnosis *d)
{
    static const struct { mistake_kind kind; const char *text; } list[] = {
        {ROPE_INTERLEAVED, "RoPE interleaved, pairs (2i, 2i+1)"},
        {ROPE_INTERLEAVED_IN, "RoPE interleaved, pairs (2i, 2i+1) written to halves"},
        {ROPE_TWICE, "RoPE applied twice"}, {ROPE_MISSING, "RoPE missing"},
        {ROPE_HALF, "RoPE on the first half of the dimensions only"},
        {ROPE_PARTIAL, "partial RoPE, half of head_dim"},
        {ROPE_BACKWARDS, "RoPE in the other direction (sign of sin)"},
        {ROPE_NORM_AFTER, "QK-norm after RoPE"}, {ROPE_ONCE, "RoPE with one rounding"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        attempt_pair(d, Q3_TAP_Q_ROPE, Q3_TAP_K_ROPE, list[i].kind, 0, list[i].text);
}

static const struct { mistake_kind kind; double value; const char *text; } norm_list[] = {
    {NORM_EPS_OUTSIDE, 0, "eps added outside the root"}, {NORM_PLUS_ONE, 0, "norm weight + 1"},
    {NORM_NO_WEIGHT, 0, "norm weight missing"}, {NORM_CENTRED, 0, "LayerNorm (mean subtracted)"},
    {NORM_SUM, 0, "sum instead of mean in the norm"}, {NORM_MISSING, 0, "norm missing"},
    {NORM_TWICE, 0, "norm applied twice"}, {NORM_ALL_HEADS, 0, "QK-norm over all heads together"},
    {NORM_AFTER_ROPE, 0, "QK-norm after RoPE"}, {NORM_BEFORE_CAST, 0, "norm weight multiplied before the cast"},
    {NORM_VARIANCE_FORMAT, FORMAT_BF16, "variance rounded to bfloat16"},
    {NORM_UNROUNDED_SUM, 0, "norm of the unrounded residual sum"},
    {NORM_ROTATED, 0, "RoPE applied to it already (a hook must copy what is overwritten in place)"},
};

static const char *other_weight(q3_tap_id id)
{
    switch ((int)id) {
    case Q3_TAP_INPUT_LAYERNORM: return "norm with post_attention_layernorm's weight";
    case Q3_TAP_POST_ATTENTION_LAYERNORM: return "norm with input_layernorm's weight";
    case Q3_TAP_NORM: return "norm with the last layer's post_attention_layernorm weight";
    default: return "weights of q_norm and k_norm swapped";
    }
}

static void try_norms(diagnosis *d)
{
    static const q3_tap_id ids[] = {Q3_TAP_INPUT_LAYERNORM, Q3_TAP_Q_NORM, Q3_TAP_POST_ATTENTION_LAYERNORM,
                                    Q3_TAP_NORM};
    static const double eps[] = {0, 1e-5, 1e-6, 1e-8, 1e-12, 1e-4, 1e-3, 1e-7, 1e-10};
    for (size_t n = 0; n < sizeof ids / sizeof ids[0]; n++) {
        char name[Q3_TAP_NAME_SIZE + 4], text[160];
        const char *where = operator_name(name, d->e, ids[n]);
        bool heads = ids[n] == Q3_TAP_Q_NORM;
        uint64_t at = TAP_BIT(ids[n]) | (heads ? TAP_BIT(Q3_TAP_K_NORM) : 0);
        if (heads) where = d->e->id > Q3_TAP_K_NORM ? "QK-norm: " : "";
        for (size_t i = 0; i < sizeof norm_list / sizeof norm_list[0]; i++) {
            snprintf(text, sizeof text, "%s%s", where, norm_list[i].text);
            if (heads) attempt_pair(d, Q3_TAP_Q_NORM, Q3_TAP_K_NORM, norm_list[i].kind, norm_list[i].value, text);
            else q3_attempt(d, at, norm_list[i].kind, norm_list[i].value, "%s", text);
        }
        q3_attempt(d, at, NORM_OTHER_WEIGHT, 0, "%s%s", where, other_weight(ids[n]));
        for (size_t i = 0; i < sizeof eps / sizeof eps[0]; i++) {
            if ((float)eps[i] == (float)d->e->config->rms_norm_eps) continue;
            if (i == 0) q3_attempt(d, at, NORM_EPS, 0, "%seps missing", where);
            else q3_attempt(d, at, NORM_EPS, eps[i], "%seps %.9g instead of %.9g", where, eps[i],
                         d->e->config->rms_norm_eps);
        }
    }
}

/* Mistakes that any linear map may have. */
static void try_map(diagnosis *d, uint64_t at, const char *where)
{
    static const size_t tails[] = {8, 16, 32, 64};
    q3_attempt(d, at, MAP_TRANSPOSED, 0, "%sweight transposed", where);
    q3_attempt(d, at, MAP_NO_BIAS, 0, "%sbias missing", where);
    q3_attempt(d, at, MAP_BIAS_TWICE, 0, "%sbias added twice", where);
    q3_attempt(d, at, MAP_BIAS_AFTER, 0, "%sbias added after the rounding", where);
    for (size_t i = 0; i < 4; i++)
        q3_attempt(d, at, MAP_TAIL, (double)tails[i], "%stail of the sum missing, its last %zu terms", where,
                tails[i]);
    for (size_t i = 1; i < 4; i++)
        q3_attempt(d, at, MAP_TAIL_BLOCK, (double)tails[i],
                "%stail of the sum missing, what is left of blocks of %zu terms", where, tails[i]);
    for (size_t i = 0; i < FORMATS; i++) {
        const char *name = formats[i].name;
        if (formats[i].f == FORMAT_FP8)
            q3_attempt(d, at, MAP_OPERANDS, FORMAT_FP8, "%soperands rounded to fp8", where);
        else
            q3_attempt(d, at, MAP_OPERANDS, formats[i].f, "%soperands rounded to %s, declare --accumulate %s", where,
                    name, name);
    }
    for (size_t i = 0; i < 2; i++) {
        q3_attempt(d, at, MAP_CAST, halves[i].f, "%soperands and result rounded to %s", where, halves[i].name);
        q3_attempt(d, at, MAP_LOW_SUM, halves[i].f, "%ssums accumulated in %s", where, halves[i].name);
    }
    for (size_t parts = 2; parts <= 8; parts *= 2)
        q3_attempt(d, at, MAP_PARTS, (double)parts, "%ssum in %zu parts, each rounded (split accumulation)", where,
                parts);
    q3_attempt(d, at, MAP_FP8, 0, "%sweights quantised to fp8", where);
    q3_attempt(d, at, MAP_INT8, 0, "%sweights quantised to int8", where);
    q3_attempt(d, at, MAP_NOT_ROUNDED, 0, "%sresult not rounded", where);
}

static void try_maps(diagnosis *d)
{
    static const q3_tap_id ids[] = {
        Q3_TAP_Q_PROJ, Q3_TAP_K_PROJ, Q3_TAP_V_PROJ, Q3_TAP_O_PROJ, Q3_TAP_GATE, Q3_TAP_EXPERTS_GATE_PROJ,
        Q3_TAP_EXPERTS_UP_PROJ, Q3_TAP_EXPERTS_DOWN_PROJ, Q3_TAP_DENSE_GATE_PROJ, Q3_TAP_DENSE_UP_PROJ, Q3_TAP_MLP,
        Q3_TAP_LM_HEAD};
    uint64_t experts = TAP_BIT(Q3_TAP_EXPERTS_GATE_PROJ) | TAP_BIT(Q3_TAP_EXPERTS_UP_PROJ);
    uint64_t dense = TAP_BIT(Q3_TAP_DENSE_GATE_PROJ) | TAP_BIT(Q3_TAP_DENSE_UP_PROJ);
    uint64_t all = experts | TAP_BIT(Q3_TAP_EXPERTS_DOWN_PROJ);
    size_t I = d->e->config->intermediate_size, F = d->e->config->moe_intermediate_size;
    if (F < I && q3_in_dense_layer(d->e))
        q3_attempt(d, TAP_BIT(Q3_TAP_MLP), MAP_TAIL, (double)(I - F),
                "dense MLP as wide as an expert, %zu instead of %zu", F, I);
    q3_attempt(d, TAP_BIT(Q3_TAP_K_PROJ) | TAP_BIT(Q3_TAP_V_PROJ), MAP_OTHER_WEIGHT, 0,
            "weights of k_proj and v_proj swapped");
    q3_attempt(d, experts | dense, MAP_OTHER_WEIGHT, 0, "gate and up swapped");
    q3_attempt(d, experts | dense, MAP_INTERLEAVED, 0, "gate and up interleaved row by row");
    q3_attempt(d, experts, MAP_WEIGHTED, 0, "routing weight applied before the expert");
    q3_attempt(d, TAP_BIT(Q3_TAP_GATE), MAP_STREAM, 0, "router reads the residual stream before the norm");
    q3_attempt(d, TAP_BIT(Q3_TAP_GATE), MAP_SOFTMAX, 0, "router logits are probabilities (softmax)");
    q3_attempt(d, TAP_BIT(Q3_TAP_LM_HEAD), MAP_OTHER_WEIGHT, 0, "lm_head tied to the embedding");
    for (double cap = 10; cap <= 50; cap += 10)
        q3_attempt(d, TAP_BIT(Q3_TAP_LM_HEAD), MAP_CAPPED, cap, "logits softcapped, %g tanh(x / %g)", cap, cap);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        char name[Q3_TAP_NAME_SIZE + 4];
        try_map(d, TAP_BIT(ids[i]), operator_name(name, d->e, ids[i]));
    }
    if (d->e->id > Q3_TAP_EXPERTS_DOWN_PROJ && d->e->id < Q3_TAP_NORM) try_map(d, all, "experts: ");
}

/* The same mistake in what is read of keys and of values, then in one of them. */
static void attempt_cache(diagnosis *d, mistake_kind kind, double value, const char *text)
{
    uint64_t keys = TAP_BIT(Q3_TAP_SCORES), values = TAP_BIT(Q3_TAP_O_PROJ_INPUT);
    bool first = d->e->id <= Q3_TAP_PROBS, known = d->e->given[Q3_TAP_SCORES] || d->e->given[Q3_TAP_PROBS];
    if (!first && !known) q3_attempt(d, keys | values, kind, value, "%s", text);
    q3_attempt(d, keys, kind, value, "%s%s", text, first ? "" : ", keys only");
    q3_attempt(d, values, kind, value, "%s, values only", text);
}

static void try_scores(diagnosis *d)
{
    const q3_config *c = d->e->config;
    uint64_t at = TAP_BIT(Q3_TAP_SCORES);
    double hd = (double)c->head_dim, narrow = (double)(c->hidden_size / c->num_attention_heads);
    q3_attempt(d, at, SCORE_SCALE, q3_sqrt(hd), "attention scale missing");
    q3_attempt(d, at, SCORE_SCALE, 1 / q3_sqrt(hd), "attention scale applied twice");
    if (narrow > 0 && narrow != hd)
        q3_attempt(d, at, SCORE_SCALE, q3_sqrt(hd / narrow), "attention scale of head_dim = hidden_size / heads");
    q3_attempt(d, at, SCORE_QUERY_FIRST, 0, "queries scaled and rounded before the product");
    for (double cap = 20; cap <= 50; cap += 10)
        q3_attempt(d, at, SCORE_CAPPED, cap, "scores softcapped, %g tanh(s / %g)", cap, cap);
    q3_attempt(d, at, CACHE_UNROTATED, 0, "keys not rotated in the cache");
    q3_attempt(d, at, SCORE_ONCE, 0, "scores rounded once, after the scale");
}

static void try_attention(diagnosis *d)
{
    uint64_t probs = TAP_BIT(Q3_TAP_PROBS), values = TAP_BIT(Q3_TAP_O_PROJ_INPUT);
    attempt_cache(d, HEAD_TILED, 0, "KV head mapping tiled (h mod K)");
    attempt_cache(d, HEAD_DIVISOR, 0, "KV head mapping h / K (wrong divisor)");
    attempt_cache(d, CACHE_STALE, 0, "stale cache, its last row is the previous token's");
    attempt_cache(d, CACHE_SHIFTED, 0, "stale cache, read one row off");
    for (size_t i = 0; i < 2; i++) {
        char text[96];
        snprintf(text, sizeof text, "KV cache rounded to %s, declare --kv %s", halves[i].name, halves[i].name);
        attempt_cache(d, CACHE_FORMAT, halves[i].f, text);
    }
    attempt_cache(d, CACHE_FORMAT, FORMAT_FP8, "KV cache rounded to fp8");
    q3_attempt(d, values, VALUE_FROM_KEYS, 0, "values taken from the keys");
    q3_attempt(d, values, VALUE_JOINED, 0, "heads joined as [hd,H], transposed");
    q3_attempt(d, probs, PROB_FUTURE, 0, "mask lets each token see one future token");
    q3_attempt(d, probs, PROB_STRICT, 0, "mask hides the token itself");
    q3_attempt(d, probs, PROB_UNMASKED, 0, "causal mask missing");
    q3_attempt(d, probs, PROB_SINK, 0, "softmax with a sink, 1 added to the denominator");
    q3_attempt(d, probs, PROB_BASE_2, 0, "softmax in base 2");
    for (size_t i = 0; i < 2; i++) {
        q3_attempt(d, probs, PROB_FORMAT, halves[i].f, "softmax in %s throughout", halves[i].name);
        q3_attempt(d, probs, PROB_NO_MAXIMUM, halves[i].f, "softmax in %s without its maximum subtracted",
                halves[i].name);
    }
}

/* The most keys that a token of theirs sees, where probs are given; 0: all of them. */
static size_t largest_window(const evidence *e)
{
    size_t most = 0, H = e->config->num_attention_heads, T = e->T;
    for (size_t row = e->first * H; e->id == Q3_TAP_PROBS && row < T * H; row++) {
        size_t first = 0, t = row / H;
        while (first < t && e->theirs[row * T + first] == 0.0f) first++;
        if (t + 1 - first > most) most = t + 1 - first;
    }
    return most < T ? most : 0;
}

static void try_window(diagnosis *d)
{
    size_t w = d->e->config->sliding_window, found = largest_window(d->e);
    uint64_t at = TAP_BIT(Q3_TAP_PROBS);
    if (w != 0) {
        size_t others[] = {w + 1, w - 1, 2 * w + 1, 2 * w};
        q3_attempt(d, at, PROB_WINDOW, 0, "window ignored");
        for (size_t i = 0; i < 4; i++)
            if (others[i] > 0)
                q3_attempt(d, at, PROB_WINDOW, (double)others[i], "window of %zu keys instead of %zu", others[i], w);
    } else if (found != 0) {
        q3_attempt(d, at, PROB_WINDOW, (double)found, "window of %zu keys though the config has none", found);
    }
}

static void try_sums(diagnosis *d)
{
    static const struct { mistake_kind kind; const char *text; } list[] = {
        {SUM_NO_RESIDUAL, "residual missing"}, {SUM_NO_BRANCH, "branch missing, the residual alone"},
        {SUM_NORMED, "residual taken from the normed input"}, {SUM_DOUBLED, "residual doubled"},
        {SUM_WITHOUT_ATTENTION, "residual taken from before attention"},
        {SUM_NOT_ROUNDED, "residual sum not rounded"},
    };
    bool first = d->e->id == Q3_TAP_POST_ATTENTION_INPUT;
    const char *apart = first || d->e->id == Q3_TAP_LAYER ? " (vLLM keeps it apart: record the sum)" : "";
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        const char *more = list[i].kind == SUM_NO_RESIDUAL ? apart : "";
        q3_attempt(d, TAP_BIT(Q3_TAP_POST_ATTENTION_INPUT), list[i].kind, 0, "%s%s", list[i].text,
                first ? more : ", after attention");
        q3_attempt(d, TAP_BIT(Q3_TAP_LAYER), list[i].kind, 0, "%s%s", list[i].text, more);
    }
}

static void try_router(diagnosis *d)
{
    const evidence *e = d->e;
    uint64_t probs = TAP_BIT(Q3_TAP_ROUTER_PROBS), ids = TAP_BIT(Q3_TAP_TOPK_INDICES);
    size_t E = e->config->num_experts;
    if (E == 0) return;
    q3_attempt(d, probs, ROUTER_TWICE, 0, "softmax applied twice");
    q3_attempt(d, probs, ROUTER_SIGMOID, 0, "sigmoid instead of softmax in the router");
    q3_attempt(d, probs, ROUTER_FORMAT, FORMAT_BF16, "router probabilities rounded to bfloat16");
    q3_attempt(d, probs, ROUTER_FORMAT, FORMAT_F16, "router probabilities rounded to float16");
    q3_attempt(d, ids, CHOICE_LOWEST, 0, "the smallest chosen (ascending order)");
    q3_attempt(d, ids, CHOICE_CLAMPED, 0, "negative logits count as 0 in the choice");
    q3_attempt(d, ids, CHOICE_SHIFTED, 1, "expert ids one higher");
    q3_attempt(d, ids, CHOICE_SHIFTED, -1, "expert ids one lower");
    for (size_t groups = 3; groups <= E / 2 && groups <= 64; groups++)
        if (E % groups == 0)
            q3_attempt(d, ids, CHOICE_GROUPS, (double)groups, "grouped selection, the best 2 of %zu groups", groups);
}

static void try_weights(diagnosis *d)
{
    static const struct { mistake_kind kind; const char *text; } list[] = {
        {WEIGHT_LOGITS, "raw router logits as weights"}, {WEIGHT_SIGMOID, "sigmoid of the logits as weights"},
        {WEIGHT_BY_ID, "weights paired in the order of the ids"},
        {WEIGHT_REVERSED, "weights paired in reverse order of rank"},
        {WEIGHT_LAST_REPEATED, "last slot has the weight of the slot before"},
        {WEIGHT_FEWER, "k - 1 experts, the last slot's weight 0"},
        {WEIGHT_MEAN, "routing weights ignored, 1/k each"}, {WEIGHT_ONE, "routing weights ignored, 1 each"},
        {WEIGHT_TWICE, "routing weights applied twice"},
        {WEIGHT_ROUNDED_FIRST, "weights rounded before they are renormalised"},
        {WEIGHT_NOT_ROUNDED, "routing weights not rounded"},
    };
    static const mistake_kind in_sum[] = {WEIGHT_MEAN, WEIGHT_ONE, WEIGHT_TWICE, WEIGHT_REVERSED};
    const q3_config *c = d->e->config;
    uint64_t at = TAP_BIT(Q3_TAP_TOPK_WEIGHTS), sum = TAP_BIT(Q3_TAP_MLP);
    if (c->num_experts == 0) return;
    if (c->norm_topk_prob) {
        q3_attempt(d, at, WEIGHT_PLAIN, 0, "top-k weights not renormalised");
    } else {
        q3_attempt(d, at, WEIGHT_NORMED, 0, "top-k weights renormalised though norm_topk_prob is false");
    }
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        q3_attempt(d, at, list[i].kind, 0, "%s", list[i].text);
        for (size_t k = 0; k < sizeof in_sum / sizeof in_sum[0]; k++)
            if (list[i].kind == in_sum[k]) q3_attempt(d, sum, list[i].kind, 0, "%s", list[i].text);
    }
    size_t A = c->num_experts_per_tok;
    q3_attempt(d, sum, COMBINE_SLOT, (double)A - 1, "last slot missing from the sum");
    for (size_t e = 0; e < c->num_experts && c->num_experts <= 256; e++)
        q3_attempt(d, sum, COMBINE_EXPERT, (double)e, "expert %zu missing from the sum", e);
}

static void try_mlp(diagnosis *d)
{
    static const struct { mistake_kind kind; const char *text; } list[] = {
        {ACT_GELU, "GELU instead of SiLU"}, {ACT_GELU_TANH, "tanh GELU instead of SiLU"},
        {ACT_RELU, "ReLU instead of SiLU"}, {ACT_HARD, "hard swish instead of SiLU"},
        {ACT_ALPHA, "x sigmoid(1.702 x) instead of SiLU (alpha 1.702)"}, {ACT_CLAMPED, "gate clamped at 7"},
        {ACT_SIGMOID_ROUNDED, "sigmoid rounded before the product"},
    };
    uint64_t act = TAP_BIT(Q3_TAP_EXPERTS_ACT_FN) | TAP_BIT(Q3_TAP_DENSE_ACT_FN);
    uint64_t product = TAP_BIT(Q3_TAP_EXPERTS_DOWN_PROJ_INPUT) | TAP_BIT(Q3_TAP_DENSE_DOWN_PROJ_INPUT);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) q3_attempt(d, act, list[i].kind, 0, "%s", list[i].text);
    q3_attempt(d, product, UP_PLUS_ONE, 0, "up + 1");
    q3_attempt(d, product, UP_CLAMPED, 7, "up clamped at 7");
    q3_attempt(d, product, UP_ONCE, 0, "silu(gate) up with one rounding");
}

/* ==== All of them ================================================================================ */

void q3_try_mistakes(diagnosis *d)
{
    try_embedding(d);
    try_table(d);
    try_rope(d);
    try_norms(d);
    try_scores(d);
    try_attention(d);
    try_window(d);
    try_router(d);
    try_weights(d);
    try_mlp(d);
    try_sums(d);
    try_maps(d);
}
