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
    for (q3_dtype dtype = Q3_F32; dtype <= Q3_BF16; dtype++)
        for (size_t i = 0; i < 6; i++) {
            given g;
            const char *prefix = prefixes[i % 2];
            float x = cases[i].x;
            open_golden(&g, golden, dtype);
            lose_silu(&g, prefix, x);
            snprintf(act, sizeof act, "%sact_fn.output", prefix);
            snprintf(product, sizeof product, "%sdown_proj.input", prefix);
            judge(&g, f, &(q3_judge_options){.end_layer = 1 + i % 2});
            CHECKF(good(finding(&g, act)) == cases[i].honest, "%s %s of %g: %s", dtypes[dtype],
                   act, (double)x, finding(&g, act)->reason);
            hide(&g, "act_fn");
            judge(&g, f, &(q3_judge_options){.end_layer = 1 + i % 2});
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
    test_worst(&f, argv[1]);
    fixture_close(&f);
    return t_done("test_statistics");
}
