/* SPDX-License-Identifier: MIT */
/* What the judge says of many elements together, and at the edge of a format: Hugging Face's run of
 * golden/tiny (golden/hf/tiny), parts of which are computed again here in plain loops as another
 * backend might.
 *
 *   test_statistics GOLDEN */
#include "judge/judge.h"
#include "model.h"

#include <math.h>

enum { MOST = 512, BLOCKS = 64, T = 24, E = 14, A = 4 };

static const char *const dtypes[3] = {"float32", "bfloat16", "float16"};

/* What a backend gives: Hugging Face's tensors, some exchanged, some left out. */
typedef struct given {
    q3_entry entries[MOST];
    size_t count;
    q3_dtype dtype;
    q3_tensors *file;
    void *blocks[BLOCKS];
    size_t block_count;
    q3_report *report; /* of the last judgement */
} given;

static void open_golden(given *g, const char *golden, q3_dtype dtype)
{
    char path[512];
    q3_error error;
    memset(g, 0, sizeof *g);
    g->dtype = dtype;
    snprintf(path, sizeof path, "%s/hf/tiny/taps-%s.safetensors", golden, dtypes[dtype]);
    if (q3_tensors_open(&g->file, path, &error) != Q3_OK) exit(1);
    for (size_t i = 0; i < q3_tensors_count(g->file) && g->count < MOST; i++)
        g->entries[g->count++] = *q3_tensors_at(g->file, i);
}

static void close_golden(given *g)
{
    q3_report_close(g->report);
    for (size_t i = 0; i < g->block_count; i++) free(g->blocks[i]);
    q3_tensors_close(g->file);
}

static q3_entry *entry(given *g, const char *name)
{
    for (size_t i = 0; i < g->count; i++)
        if (strcmp(g->entries[i].name, name) == 0) return &g->entries[i];
    fprintf(stderr, "no tensor %s\n", name);
    exit(1);
}

/* Leaves out the tensors whose names hold this text. */
static void hide(given *g, const char *text)
{
    size_t kept = 0;
    for (size_t i = 0; i < g->count; i++)
        if (strstr(g->entries[i].name, text) == NULL) g->entries[kept++] = g->entries[i];
    CHECKF(kept < g->count, "nothing holds %s", text);
    g->count = kept;
}

/* A tensor's values, to read or, from here on, to change. */
static float *values(given *g, const char *name, size_t *count)
{
    q3_entry *e = entry(g, name);
    size_t n = 1;
    for (size_t i = 0; i < e->rank; i++) n *= (size_t)e->shape[i];
    float *copy = malloc(n * sizeof *copy);
    if (copy == NULL || g->block_count == BLOCKS) exit(1);
    q3_entry_floats(copy, e, 0, n);
    g->blocks[g->block_count++] = copy;
    e->dtype = Q3_F32;
    e->data = copy;
    if (count != NULL) *count = n;
    return copy;
}

static void judge(given *g, const fixture *f, const q3_judge_options *options)
{
    q3_error error = {""};
    q3_judge *judge = NULL;
    q3_report_close(g->report);
    g->report = NULL;
    q3_status status = q3_judge_open(&judge, f->config, options, &error);
    for (size_t i = 0; i < g->count && status == Q3_OK; i++)
        status = q3_judge_tensor(judge, &g->entries[i], &error);
    if (status == Q3_OK)
        status = q3_judge_run(judge, f->weights, g->dtype, &g->report, &error);
    if (status != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    q3_judge_close(judge);
}

static const q3_finding *finding(const given *g, const char *name)
{
    for (size_t i = 0; i < q3_report_count(g->report); i++)
        if (strcmp(q3_report_finding(g->report, i)->name, name) == 0)
            return q3_report_finding(g->report, i);
    exit(1);
}

static bool good(const q3_finding *f)
{
    return f->verdict == Q3_VERDICT_EXACT || f->verdict == Q3_VERDICT_WITHIN;
}

/* ==== silu where exp overflows ================================================================ */

/* Every fifth gate becomes x; silu of it is 0, as x / (1 + exp(-x)) of float32 has it below -88.72.
 * The true value, x exp(x), is not. */
static void lose_silu(given *g, const char *prefix, float x)
{
    char name[128];
    size_t count;
    snprintf(name, sizeof name, "%sgate_proj.output", prefix);
    float *gate = values(g, name, &count);
    snprintf(name, sizeof name, "%sact_fn.output", prefix);
    float *act = values(g, name, NULL);
    snprintf(name, sizeof name, "%sup_proj.output", prefix);
    float *up = values(g, name, NULL);
    snprintf(name, sizeof name, "%sdown_proj.input", prefix);
    float *product = values(g, name, NULL);
    for (size_t i = 0; i < count; i += 5) {
        gate[i] = x;
        act[i] = -0.0f;
        product[i] = act[i] * up[i];
    }
}

static void test_edge(const fixture *f, const char *golden)
{
    static const char *const prefixes[] = {"model.layers.0.mlp.experts.", "model.layers.1.mlp."};
    static const struct { float x; bool honest; } cases[] = {
        {-89, true}, {-95, true}, {-104, true}, {-87.5f, true}, {-86.5f, false}, {-80, false}};
    char act[128], product[128];
    for (size_t i = 0; i < 6; i++) {
        given g;
        q3_dtype dtype = i % 2 == 0 ? Q3_F32 : Q3_BF16;
        const char *prefix = prefixes[i % 3 == 0];
        float x = cases[i].x;
        open_golden(&g, golden, dtype);
        lose_silu(&g, prefix, x);
        snprintf(act, sizeof act, "%sact_fn.output", prefix);
        snprintf(product, sizeof product, "%sdown_proj.input", prefix);
        judge(&g, f, &(q3_judge_options){.end_layer = 1 + (i % 3 == 0)});
        CHECKF(good(finding(&g, act)) == cases[i].honest, "%s %s of %g: %s", dtypes[dtype],
               act, (double)x, finding(&g, act)->reason);
        hide(&g, "act_fn");
        judge(&g, f, &(q3_judge_options){.end_layer = 1 + (i % 3 == 0)});
        CHECKF(good(finding(&g, product)) == cases[i].honest, "%s %s of %g: %s",
               dtypes[dtype], product, (double)x, finding(&g, product)->reason);
        close_golden(&g);
    }
}

/* ==== Router probabilities in a coarser format ================================================ */

/* Softmax, rounded; the weights of Hugging Face's choice, their sum rounded too. */
static void round_router(given *g, bool recorded)
{
    const char prefix[] = "model.layers.0.mlp.";
    char name[128];
    snprintf(name, sizeof name, "%srouter_probs.output", prefix);
    float *probs = values(g, name, NULL), rounded[T * E];
    snprintf(name, sizeof name, "%stopk_indices.output", prefix);
    int64_t ids[T * A];
    q3_entry_integers(ids, entry(g, name), 0, T * A);
    snprintf(name, sizeof name, "%stopk_weights.output", prefix);
    float *weights = values(g, name, NULL);
    for (size_t i = 0; i < T * E; i++) rounded[i] = q3_round((double)probs[i], Q3_BF16);
    for (size_t t = 0; t < T; t++) {
        double sum = 0;
        for (size_t a = 0; a < A; a++) sum += (double)rounded[t * E + (size_t)ids[t * A + a]];
        sum = (double)q3_round(sum, Q3_BF16);
        for (size_t a = 0; a < A; a++)
            weights[t * A + a] =
                q3_round((double)rounded[t * E + (size_t)ids[t * A + a]] / sum, g->dtype);
    }
    if (recorded) memcpy(probs, rounded, sizeof rounded);
}

static void test_router(const fixture *f, const char *golden)
{
    const char probs[] = "model.layers.0.mlp.router_probs.output",
               ids[] = "model.layers.0.mlp.topk_indices.output",
               weights[] = "model.layers.0.mlp.topk_weights.output";
    for (q3_dtype dtype = Q3_F32; dtype <= Q3_F16; dtype++)
        for (int recorded = 0; recorded < 2; recorded++) {
            given g;
            open_golden(&g, golden, dtype);
            round_router(&g, recorded);
            judge(&g, f, &(q3_judge_options){.end_layer = 1});
            CHECK(finding(&g, recorded ? probs : weights)->verdict == Q3_VERDICT_DIFFERS ||
                  (dtype == Q3_BF16 && !recorded));
            judge(&g, f, &(q3_judge_options){.end_layer = 1, .router = Q3_BF16});
            CHECKF(good(finding(&g, probs)), "%s: %s", dtypes[dtype], finding(&g, probs)->reason);
            CHECK(finding(&g, ids)->wrong_sets == 0);
            CHECKF(good(finding(&g, weights)), "%s: %s", dtypes[dtype],
                   finding(&g, weights)->reason);
            hide(&g, "router_probs");
            judge(&g, f, &(q3_judge_options){.end_layer = 1, .router = Q3_BF16});
            CHECK(finding(&g, ids)->wrong_sets == 0);
            CHECKF(good(finding(&g, weights)), "%s: %s", dtypes[dtype],
                   finding(&g, weights)->reason);
            close_golden(&g);
        }
}

/* What a declared router may do to one element: a probability on the other side of a midpoint, and
 * a sum of A = 4 that is rounded after each of its three additions, by half an ulp of itself at
 * most. */
static void test_router_bounds(const fixture *f, const char *golden)
{
    const char probs[] = "model.layers.0.mlp.router_probs.output",
               weights[] = "model.layers.0.mlp.topk_weights.output";
    for (int halves = 0; halves < 5; halves++) {
        given g;
        int exponent;
        open_golden(&g, golden, Q3_F32);
        round_router(&g, true);
        float *p = values(&g, probs, NULL), *w = values(&g, weights, NULL);
        int64_t ids[A];
        double mass = 0;
        q3_entry_integers(ids, entry(&g, "model.layers.0.mlp.topk_indices.output"), 0, A);
        for (size_t a = 0; a < A; a++) mass += (double)p[ids[a]];
        frexp(mass, &exponent);
        w[0] = (float)((double)p[ids[0]] / (mass - (halves - 0.5) * ldexp(1, exponent - 9)));
        frexp((double)p[7], &exponent);
        if (halves == 0) p[7] += (float)ldexp(1, exponent - 8);
        judge(&g, f, &(q3_judge_options){.end_layer = 1, .router = Q3_BF16});
        CHECKF((finding(&g, weights)->verdict == Q3_VERDICT_DIFFERS) == (halves == 4),
               "%d halves: %s", halves, finding(&g, weights)->reason);
        CHECK(finding(&g, probs)->verdict != Q3_VERDICT_DIFFERS);
        close_golden(&g);
    }
}

/* Two experts between which the choice of token 0 lies have logits so close that their
 * probabilities are one bfloat16 value: then the lower id is taken, by theirs and, as it is
 * declared, by ours. */
static void test_router_tie(const fixture *f, const char *golden)
{
    const char ids[] = "model.layers.0.mlp.topk_indices.output";
    int64_t chosen[T * A], high = -1, low;
    given g;
    open_golden(&g, golden, Q3_F32);
    float *logits = values(&g, "model.layers.0.mlp.gate.output", NULL);
    q3_entry *entry_of_ids = entry(&g, ids);
    q3_entry_integers(chosen, entry_of_ids, 0, T * A);
    for (int64_t e = 0; e < (int64_t)E; e++) { /* the best of those that were left */
        bool taken = false;
        for (size_t a = 0; a < A; a++) taken = taken || chosen[a] == e;
        if (!taken && (high < 0 || logits[e] > logits[high])) high = e;
    }
    low = chosen[A - 1] < high ? chosen[A - 1] : high;
    high = chosen[A - 1] < high ? high : chosen[A - 1];
    logits[low] = logits[chosen[A - 1]];
    logits[high] = logits[low] + 0x1p-16f; /* the larger one, in float32 */
    chosen[A - 1] = low;
    entry_of_ids->dtype = Q3_I64;
    entry_of_ids->data = (const uint8_t *)chosen;
    /* recorded before they were rounded */
    float *probs = values(&g, "model.layers.0.mlp.router_probs.output", NULL);
    double sum = 0;
    for (size_t e = 0; e < E; e++) sum += exp((double)logits[e]);
    for (size_t e = 0; e < E; e++) probs[e] = (float)(exp((double)logits[e]) / sum);
    CHECK(probs[high] > probs[low] &&
          q3_round((double)probs[high], Q3_BF16) == q3_round((double)probs[low], Q3_BF16));
    hide(&g, "topk_weights");
    judge(&g, f, &(q3_judge_options){.end_layer = 1, .router = Q3_BF16});
    const q3_finding *found = finding(&g, ids);
    CHECKF(found->near_ties == 0 && found->wrong_sets == 0, "%s", found->reason);
    judge(&g, f, &(q3_judge_options){.end_layer = 1});
    CHECK(finding(&g, ids)->wrong_sets == 1);
    close_golden(&g);
}

/* ==== The worst elements ====================================================================== */

/* Of a residual sum a bfloat16 element may be 1 ulp off, and half an ulp of the branch: elements
 * 10, 20, ... 100 are off by 2, 3, ... 11 ulp of themselves; eight are shown, the last ones. Which
 * is worst also depends on the branch, but not beyond its share. */
static void test_worst(const fixture *f, const char *golden)
{
    const char name[] = "model.layers.0.post_attention_layernorm.input";
    given g;
    open_golden(&g, golden, Q3_BF16);
    float *x = values(&g, name, NULL);
    for (size_t i = 1; i <= 10; i++) {
        int exponent;
        frexp((double)x[10 * i], &exponent);
        x[10 * i] += (float)ldexp(x[10 * i] > 0 ? (double)i + 1 : -(double)i - 1, exponent - 8);
    }
    judge(&g, f, &(q3_judge_options){.end_layer = 1});
    const q3_finding *found = finding(&g, name);
    CHECK(found->verdict == Q3_VERDICT_DIFFERS && found->worst_count == 8);
    double before = INFINITY;
    for (size_t i = 0; i < found->worst_count; i++) {
        const q3_element *e = &found->worst[i];
        size_t c = e->at[1];
        CHECK(e->at[0] == 0 && c % 10 == 0 && c > 0 && e->theirs == (double)x[c]);
        CHECK(e->bound_ulp > 0.5 && e->ulp / e->bound_ulp <= before);
        before = e->ulp / e->bound_ulp;
    }
    CHECK(found->worst[0].ulp / found->worst[0].bound_ulp == found->max_bound_ratio);
    close_golden(&g);
    /* Nothing is allowed of the embedding, and NaN is worse than any number. */
    open_golden(&g, golden, Q3_BF16);
    x = values(&g, "model.embed_tokens.output", NULL);
    x[3] *= 2;
    x[200] = NAN;
    judge(&g, f, &(q3_judge_options){.end_layer = 1});
    found = finding(&g, "model.embed_tokens.output");
    CHECK(found->worst_count == 2 && found->worst[0].at[0] == 1 && found->worst[0].at[1] == 80);
    CHECK(found->worst[1].at[1] == 3 && found->worst[1].bound_ulp == 0);
    CHECK(found->worst[1].theirs == (double)x[3] && found->worst[1].ours == (double)x[3] / 2);
    close_golden(&g);
}

/* ==== Truncation ============================================================================== */

enum { M = 120, H = 6, K = 2, HD = 24, F = 56 };

/* Toward 0 instead of to nearest. */
static float cut(double x, q3_dtype dtype)
{
    static const int bits[3] = {24, 8, 11};
    int exponent;
    double part = frexp(x, &exponent);
    if (exponent < -13 && dtype == Q3_F16) exponent = -13; /* subnormal */
    part = ldexp(x, bits[dtype] - exponent);
    return (float)ldexp(trunc(part), exponent - bits[dtype]);
}

typedef enum store { ROUND, CUT, UNROUNDED_TABLE } store;

static float stored(double x, q3_dtype dtype, store how)
{
    return how == CUT ? cut(x, dtype) : q3_round(x, dtype);
}

/* Every second element of a tensor, whose inputs were given, is an ulp nearer to 0, which is within
 * the bound of each. */
static void test_cut_directly(const fixture *f, const char *golden)
{
    static const char *const names[] = {
        "input_layernorm.output", "self_attn.q_proj.output", "self_attn.v_proj.output",
        "self_attn.q_norm.output", "self_attn.q_rope.output", "self_attn.o_proj.input",
        "self_attn.o_proj.output", "post_attention_layernorm.input", "mlp.topk_weights.output",
        "mlp.experts.gate_proj.output", "mlp.experts.act_fn.output", "mlp.experts.down_proj.input",
        "mlp.experts.down_proj.output", "output"};
    for (q3_dtype dtype = Q3_BF16; dtype <= Q3_F16; dtype++)
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i += dtype == Q3_BF16 ? 1 : 4) {
            char name[128];
            given g;
            size_t count;
            snprintf(name, sizeof name, "model.layers.0.%s", names[i]);
            open_golden(&g, golden, dtype);
            float *x = values(&g, name, &count);
            for (size_t k = 0; k < count; k += 2) x[k] = cut((double)x[k] * (1 - 0x1p-14), dtype);
            judge(&g, f, &(q3_judge_options){.end_layer = 1});
            const q3_finding *found = finding(&g, name);
            CHECKF(found->verdict == Q3_VERDICT_DIFFERS, "%s %s: %s, %s", dtypes[dtype], name,
                   q3_verdict_name(found->verdict), found->reason);
            /* Hugging Face's own value may be an ulp lower already. */
            CHECK(found->outside > 0 ? found->outside < 3
                                     : strstr(found->reason, "over the whole tensor") != NULL);
            close_golden(&g);
        }
}

/* Attention in one kernel, without a rounding inside; its output is stored. */
static void fuse_attention(given *g, store how)
{
    const char prefix[] = "model.layers.0.self_attn.";
    char name[128];
    float *x[4];
    static const char *const names[] = {"q_rope.output", "k_rope.output", "v_proj.output",
                                        "o_proj.input"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, names[i]);
        x[i] = values(g, name, NULL);
    }
    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < H; h++) {
            double p[T], sum = 0, y[HD] = {0};
            for (size_t s = 0; s <= t; s++) {
                double dot = 0;
                for (size_t d = 0; d < HD; d++)
                    dot += (double)x[0][(t * H + h) * HD + d] *
                           (double)x[1][(s * K + h / (H / K)) * HD + d];
                sum += p[s] = exp(dot / sqrt((double)HD));
            }
            for (size_t s = 0; s <= t; s++)
                for (size_t d = 0; d < HD; d++)
                    y[d] += p[s] / sum * (double)x[2][(s * K + h / (H / K)) * HD + d];
            for (size_t d = 0; d < HD; d++)
                x[3][(t * H + h) * HD + d] = stored(y[d], g->dtype, how);
        }
}

/* RoPE of the queries in one kernel, with cosines and sines as float32 has them or as the run's
 * dtype has them. */
static void fuse_rope(given *g, const char *golden, store how)
{
    float *x = values(g, "model.layers.0.self_attn.q_norm.output", NULL),
          *y = values(g, "model.layers.0.self_attn.q_rope.output", NULL),
          *cosine = values(g, "model.rotary_emb.cos", NULL),
          *sine = values(g, "model.rotary_emb.sin", NULL);
    given exact;
    open_golden(&exact, golden, Q3_F32);
    if (how == UNROUNDED_TABLE) cosine = values(&exact, "model.rotary_emb.cos", NULL);
    if (how == UNROUNDED_TABLE) sine = values(&exact, "model.rotary_emb.sin", NULL);
    for (size_t i = 0; i < T * H * HD; i++) {
        size_t d = i % HD, at = i / (H * HD) * HD + d;
        double turned = d < HD / 2 ? -(double)x[i + HD / 2] : (double)x[i - HD / 2];
        y[i] = stored((double)x[i] * (double)cosine[at] + turned * (double)sine[at], g->dtype, how);
    }
    close_golden(&exact);
}

/* silu(gate) up in one step, a linear map, the weighted sum: rounded, or cut, twice. */
static void fuse_experts(given *g, const fixture *f, store how)
{
    const char prefix[] = "model.layers.0.mlp.";
    char name[128];
    int64_t ids[T * A];
    float *gate, *up, *weights, *y;
    snprintf(name, sizeof name, "%sexperts.gate_proj.output", prefix), gate = values(g, name, NULL);
    snprintf(name, sizeof name, "%sexperts.up_proj.output", prefix), up = values(g, name, NULL);
    snprintf(name, sizeof name, "%stopk_weights.output", prefix), weights = values(g, name, NULL);
    snprintf(name, sizeof name, "%soutput", prefix), y = values(g, name, NULL);
    snprintf(name, sizeof name, "%stopk_indices.output", prefix);
    q3_entry_integers(ids, entry(g, name), 0, T * A);
    for (size_t t = 0; t < T; t++) {
        double sum[M] = {0};
        for (size_t i = t * A; i < (t + 1) * A; i++) {
            float weight[M * F], product[F];
            q3_widen(weight, f->weights->layers[0].experts[ids[i]].down_proj, 0, M * F, g->dtype);
            for (size_t k = 0; k < F; k++) {
                double x = (double)gate[i * F + k];
                product[k] = stored(x / (1 + exp(-x)) * (double)up[i * F + k], g->dtype, how);
            }
            for (size_t m = 0; m < M; m++) {
                double dot = 0;
                for (size_t k = 0; k < F; k++)
                    dot += (double)weight[m * F + k] * (double)product[k];
                sum[m] += (double)weights[i] * (double)q3_round(dot, g->dtype);
            }
        }
        for (size_t m = 0; m < M; m++) y[t * M + m] = stored(sum[m], g->dtype, how);
    }
}

/* What is inside a kernel is hidden: that it rounds nothing there is honest, that it cuts what it
 * stores is not, and no element shows it. */
static void test_cut_behind_hidden(const fixture *f, const char *golden)
{
    static const char *const taps[] = {"model.layers.0.self_attn.o_proj.input",
                                       "model.layers.0.self_attn.q_rope.output",
                                       "model.layers.0.mlp.output"};
    for (size_t i = 0; i < 3; i++)
        for (q3_dtype dtype = Q3_BF16; dtype <= Q3_F16; dtype++)
            for (store how = ROUND; how <= UNROUNDED_TABLE; how++) {
                given g;
                open_golden(&g, golden, dtype);
                if (i == 0) fuse_attention(&g, how), hide(&g, "scores"), hide(&g, "probs");
                if (i == 1) fuse_rope(&g, golden, how), hide(&g, "rotary_emb");
                if (i == 2) fuse_experts(&g, f, how), hide(&g, "act_fn"), hide(&g, "down_proj");
                judge(&g, f, &(q3_judge_options){.end_layer = 1});
                const q3_finding *found = finding(&g, taps[i]);
                CHECKF(how == CUT ? found->verdict == Q3_VERDICT_DIFFERS && found->outside == 0
                                  : good(found), "%s %s, %d: %s, %s", dtypes[dtype], taps[i],
                       (int)how, q3_verdict_name(found->verdict), found->reason);
                CHECK(how != CUT || strstr(found->reason, "theirs is 0.99") == found->reason);
                close_golden(&g);
            }
}

/* ==== A factor for each row =================================================================== */

typedef enum norm_kind { RIGHT, LATE, FUSED_SUM, COARSE_VARIANCE } norm_kind;

/* The norm before the experts: as Hugging Face's; rounded once; of a residual sum that was not
 * rounded before; with its mean of squares rounded to the run's dtype. */
static void make_norm(given *g, const fixture *f, norm_kind kind)
{
    const char prefix[] = "model.layers.0.";
    char name[128];
    float *x, *branch, *stream, *y, weight[M];
    snprintf(name, sizeof name, "%spost_attention_layernorm.input", prefix),
        x = values(g, name, NULL);
    snprintf(name, sizeof name, "%spost_attention_layernorm.output", prefix),
        y = values(g, name, NULL);
    snprintf(name, sizeof name, "%sself_attn.o_proj.output", prefix),
        branch = values(g, name, NULL);
    stream = values(g, "model.embed_tokens.output", NULL);
    q3_widen(weight, f->weights->layers[0].post_attention_layernorm, 0, M, g->dtype);
    for (size_t t = 0; t < T; t++) {
        double square = 0, row[M];
        for (size_t i = 0; i < M; i++) {
            row[i] = (double)x[t * M + i];
            if (kind == FUSED_SUM) row[i] = (double)stream[t * M + i] + (double)branch[t * M + i];
            square += row[i] * row[i] / M;
        }
        if (kind == COARSE_VARIANCE) square = (double)q3_round(square, g->dtype);
        for (size_t i = 0; i < M; i++) {
            double v = row[i] / sqrt(square + (double)(float)f->config->rms_norm_eps);
            if (kind != LATE) v = (double)q3_round(v, g->dtype);
            y[t * M + i] = q3_round(v * (double)weight[i], g->dtype);
        }
    }
}

static void test_rows(const fixture *f, const char *golden)
{
    const char name[] = "model.layers.0.post_attention_layernorm.output";
    for (q3_dtype dtype = Q3_BF16; dtype <= Q3_F16; dtype++)
        for (norm_kind kind = RIGHT; kind <= COARSE_VARIANCE; kind++) {
            given g;
            open_golden(&g, golden, dtype);
            make_norm(&g, f, kind);
            judge(&g, f, &(q3_judge_options){.end_layer = 1});
            const q3_finding *found = finding(&g, name);
            CHECKF(found->outside == 0 &&
                       (found->verdict == Q3_VERDICT_DIFFERS) == (kind == COARSE_VARIANCE),
                   "%s, %d: %s, %s", dtypes[dtype], (int)kind, q3_verdict_name(found->verdict),
                   found->reason);
            CHECK(kind != COARSE_VARIANCE || strstr(found->reason, "a factor of its own") != NULL);
            close_golden(&g);
        }
}

/* The same token again and again: its rows are one piece of evidence, whatever their number. */
static void test_repeated(const fixture *f, const char *golden)
{
    const char in[] = "model.layers.0.post_attention_layernorm.input",
               out[] = "model.layers.0.post_attention_layernorm.output";
    for (size_t t = 1; t < T; t += 2) {
        given g;
        open_golden(&g, golden, Q3_BF16);
        make_norm(&g, f, LATE);
        float *x = values(&g, in, NULL), *y = values(&g, out, NULL);
        for (size_t s = 0; s < T; s++) {
            if (s == t) continue;
            memcpy(x + s * M, x + t * M, M * sizeof *x);
            memcpy(y + s * M, y + t * M, M * sizeof *y);
        }
        judge(&g, f, &(q3_judge_options){.end_layer = 1});
        CHECKF(finding(&g, out)->verdict != Q3_VERDICT_DIFFERS, "token %lu: %s", (unsigned long)t,
               finding(&g, out)->reason);
        close_golden(&g);
    }
}

/* Inputs of three significands alone, so that a rounding which is left out is the same for a third
 * of each row: three pieces of evidence a row, whatever its length. */
static void test_significands(const fixture *f, const char *golden)
{
    const char in[] = "model.layers.0.post_attention_layernorm.input",
               out[] = "model.layers.0.post_attention_layernorm.output";
    for (q3_dtype dtype = Q3_BF16; dtype <= Q3_F16; dtype++) {
        given g;
        open_golden(&g, golden, dtype);
        float *x = values(&g, in, NULL);
        for (size_t t = 0; t < T; t++)
            for (size_t i = 0; i < M; i++) {
                double part = 1 + 0.3125 * (double)((7 * i + 13 * t) % 3);
                int exponent = (int)((i * (t + 1)) % 5) - 2;
                x[t * M + i] = (float)ldexp((i * t + i) % 2 == 0 ? part : -part, exponent);
            }
        make_norm(&g, f, LATE);
        judge(&g, f, &(q3_judge_options){.end_layer = 1});
        CHECKF(finding(&g, out)->verdict != Q3_VERDICT_DIFFERS, "%s: %s", dtypes[dtype],
               finding(&g, out)->reason);
        close_golden(&g);
    }
}

int main(int argc, char **argv)
{
    static fixture f;
    char path[512];
    CHECK(argc == 2);
    if (argc != 2) return t_done("test_statistics");
    snprintf(path, sizeof path, "%s/tiny", argv[1]);
    fixture_from_folder(&f, path);
    test_edge(&f, argv[1]);
    test_router(&f, argv[1]);
    test_router_bounds(&f, argv[1]);
    test_router_tie(&f, argv[1]);
    test_worst(&f, argv[1]);
    test_cut_directly(&f, argv[1]);
    test_cut_behind_hidden(&f, argv[1]);
    test_rows(&f, argv[1]);
    test_repeated(&f, argv[1]);
    test_significands(&f, argv[1]);
    fixture_close(&f);
    return t_done("test_statistics");
}
