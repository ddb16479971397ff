/* SPDX-License-Identifier: MIT */
/* Whatever a file holds, check says something of it and never stops: small models of every kind of
 * RoPE, with and without experts, biases, windows, and tensors that are right, nearly right, wrong
 * in some way, or no numbers, some of them hidden. A precondition of the library that is broken
 * stops the program. The seed is fixed; every verdict must have been given.
 *
 * test_garbage [MODELS [FIRST]] */
#include "host/files.h"
#include "host/taps.h"
#include "host/text.h"
#include "judge/judge.h"
#include "model.h"

#include <math.h>

enum { MODELS = 120, MOST_TOKENS = 9 };

typedef struct garden {
    uint64_t key, next;
    q3_config c;
    fixture f;
    q3_dtype dtype;
    size_t T, start;
    int32_t ids[MOST_TOKENS];
    int64_t positions[MOST_TOKENS];
    float *tap[2][Q3_TAP_COUNT]; /* by layer */
    size_t shape[Q3_TAP_COUNT][3], rank[Q3_TAP_COUNT], count[Q3_TAP_COUNT];
} garden;

/* 0 to n - 1 */
static size_t pick(garden *g, size_t n)
{
    return (size_t)(rule_bits(g->key, g->next++) >> 20) % n;
}

#define ONE_OF(g, list) (list)[pick(g, sizeof(list) / sizeof *(list))]

static void *memory(size_t count, size_t size)
{
    void *block = calloc(count + 1, size);
    if (block == NULL) exit(1);
    return block;
}

/* ==== Models ================================================================================== */

static void choose_rope(garden *g)
{
    static const double thetas[] = {1.0000000000000002, 1.001, 10, 1e4, 1e6, 1e30};
    static const double factors[] = {1, 1.0001, 4, 1e6, 3e19, 1e30};
    static const double betas[] = {1e-30, 1, 32, 1e30};
    static const double lengths[] = {1, 40, 8192, 2147483647};
    q3_rope *r = &g->c.rope;
    r->type = (q3_rope_type)pick(g, Q3_ROPE_TYPES);
    r->rope_theta = ONE_OF(g, thetas);
    r->factor = ONE_OF(g, factors);
    r->original_max_position_embeddings = ONE_OF(g, lengths);
    r->beta_fast = ONE_OF(g, betas), r->beta_slow = ONE_OF(g, betas);
    r->truncate = pick(g, 2);
    r->has_attention_factor = pick(g, 4) == 0;
    r->attention_factor = (double)pick(g, 3);
    r->low_freq_factor = 1 + (double)pick(g, 3);
    r->high_freq_factor = r->low_freq_factor * (double)(1 + pick(g, 4));
    if (!q3_rope_fits(r, g->c.head_dim, g->c.max_position_embeddings, Q3_MAX_POSITIONS))
        *r = (q3_rope){.rope_theta = 1e4};
}

static void choose_config(garden *g)
{
    static const size_t widths[] = {2, 4, 6, 8, 16, 64, 256}, sizes[] = {2, 3, 8, 20};
    static const size_t starts[] = {0, 0, 1, 3, 5000, Q3_MAX_POSITIONS - MOST_TOKENS};
    static const double eps[] = {0, 1e-6, 1e-5, 1, 3e38};
    q3_config *c = &g->c;
    c->vocab_size = 5 + pick(g, 20);
    c->num_hidden_layers = 1 + pick(g, 2);
    c->num_key_value_heads = 1 + pick(g, 3);
    c->num_attention_heads = c->num_key_value_heads * (1 + pick(g, 3));
    c->head_dim = ONE_OF(g, widths);
    c->hidden_size = ONE_OF(g, sizes);
    c->intermediate_size = ONE_OF(g, sizes);
    c->moe_intermediate_size = ONE_OF(g, sizes);
    c->max_position_embeddings = 2 + pick(g, 2) * 4000;
    c->num_experts = pick(g, 4) == 0 ? 0 : 1 + pick(g, 9);
    c->num_experts_per_tok = c->num_experts > 0 ? 1 + pick(g, c->num_experts) : 1;
    c->decoder_sparse_step = 1 + pick(g, 2);
    c->sliding_window = pick(g, 3) == 0 ? 1 + pick(g, 5) : 0;
    c->pad_token_id = -1;
    c->rms_norm_eps = ONE_OF(g, eps);
    c->norm_topk_prob = pick(g, 2);
    c->attention_bias = pick(g, 2);
    choose_rope(g);
    g->dtype = (q3_dtype)pick(g, 3); /* float32, bfloat16, float16 */
    g->T = 1 + pick(g, MOST_TOKENS);
    g->start = ONE_OF(g, starts);
    for (size_t t = 0; t < g->T; t++) {
        g->ids[t] = (int32_t)pick(g, c->vocab_size);
        g->positions[t] = (int64_t)(g->start + t);
    }
}

/* Weights by the rule, under another seed. */
static void make_weights(garden *g)
{
    fixture *f = &g->f;
    const q3_config *c = f->config = &g->c;
    snprintf(f->seed, sizeof f->seed, "garbage%zu", pick(g, 1000000));
    f->own.embed_tokens = fixture_tensor(f, "model.embed_tokens.weight", c->vocab_size,
                                         c->hidden_size);
    f->own.norm = fixture_tensor(f, "model.norm.weight", c->hidden_size, 1);
    f->own.lm_head = fixture_tensor(f, "lm_head.weight", c->vocab_size, c->hidden_size);
    f->layers = fixture_block(f, c->num_hidden_layers * sizeof *f->layers);
    for (size_t i = 0; i < c->num_hidden_layers; i++) fixture_layer(f, i);
    f->own.layers = f->layers;
    f->weights = &f->own;
}

static void capture(void *user, const q3_tap *tap)
{
    garden *g = user;
    size_t T = g->T, t = tap->first;
    float *to = g->tap[q3_tap_in_layer(tap->id) ? tap->layer : 0][tap->id];
    if (tap->id == Q3_TAP_SCORES || tap->id == Q3_TAP_PROBS) {
        for (size_t h = 0; h < tap->shape[0]; h++)
            memcpy(to + (h * T + t) * T, (float *)tap->data + h * tap->shape[2],
                   tap->shape[2] * sizeof *to);
    } else if (tap->id == Q3_TAP_TOPK_INDICES) {
        for (size_t i = 0; i < g->count[tap->id]; i++) to[i] = (float)((int32_t *)tap->data)[i];
    } else {
        memcpy(to, tap->data, g->count[tap->id] * sizeof *to);
    }
}

static void run_right(garden *g)
{
    q3_error error;
    void *block;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        bool square = i == Q3_TAP_SCORES || i == Q3_TAP_PROBS;
        size_t *shape = g->shape[i];
        g->rank[i] = q3_tap_shape(shape, &g->c, (q3_tap_id)i, g->T);
        if (square) shape[0] = g->c.num_attention_heads, shape[1] = shape[2] = g->T;
        g->count[i] = shape[0] * shape[1] * (g->rank[i] > 2 ? shape[2] : 1);
        for (size_t l = 0; l < 2; l++) g->tap[l][i] = memory(g->count[i], sizeof(float));
    }
    q3_run run = {.dtype = g->dtype, .end_layer = g->c.num_hidden_layers, .start = g->start,
                  .rows = g->T, .chunk = g->T};
    q3_input input = {.tokens = g->ids, .count = g->T, .length = g->start + g->T,
                      .logit_rows = g->T};
    q3_state *state = fixture_state(&g->f, &run, &block);
    CHECK(state != NULL && q3_forward(state, &input, capture, g, &error) == Q3_OK);
    free(block);
}

/* ==== Tensors ================================================================================= */

/* One of many ways to spoil y[count], rows of n. */
static void spoil(garden *g, float *y, size_t count, size_t n)
{
    static const float extremes[] = {0.0f, -0.0f, 1e-45f, 1e-30f, 1.0f, -7.0f, 3e38f, INFINITY,
                                     -INFINITY, NAN};
    size_t how = pick(g, 16), one = pick(g, count), column = pick(g, n);
    float value = ONE_OF(g, extremes), factor = 1 + (float)pick(g, 5) / 64;
    float *copy = memory(count, sizeof *copy);
    memcpy(copy, y, count * sizeof *copy);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)(rule_bits(g->key, g->next++) >> 13);
        if (how == 1) y[i] = value;
        if (how == 2) y[i] = q3_round((double)(copy[i] * factor), g->dtype);
        if (how == 3) memcpy(&y[i], &bits, 4);
        if (how == 4 && bits % 5 == 0) y[i] = ONE_OF(g, extremes);
        if (how == 5) y[i] = copy[(i + n) % count];
        if (how == 6) y[i] = (float)(bits % 2000) / 1000 - 1;
        if (how == 7 && i == one) y[i] = value;
        if (how == 8 && bits % 9 == 0) y[i] = q3_round((double)copy[i] * (1 + 0x1p-7), g->dtype);
        if (how == 9 && i % n == column) y[i] = q3_round((double)copy[i] * 1.5, g->dtype);
        if (how == 10) y[i] = copy[i / n * n + n - 1 - i % n];
        if (how == 11) y[i] = q3_round((double)copy[i], Q3_BF16);
        if (how == 12) y[i] = i / n * n + n > count - n ? value : copy[i];
        if (how == 13) y[i] = copy[i] * 0x1p100f;
        if (how == 14) y[i] = i % n < 2 ? value : 1.0f;
        if (how == 15) y[i] = q3_round((double)copy[i] + 0.25, g->dtype);
    }
    free(copy);
}

static q3_status give(garden *g, q3_judge *j, q3_tap_id id, size_t layer, q3_error *error)
{
    char *name = fixture_block(&g->f, Q3_TAP_NAME_SIZE); /* freed with the model, as all of it */
    size_t count = g->count[id];
    float *y = fixture_block(&g->f, count * sizeof *y);
    int64_t *ids = fixture_block(&g->f, count * sizeof *ids);
    q3_entry e = {.name = name, .dtype = Q3_F32, .rank = g->rank[id], .data = y};
    q3_tap_name(name, id, layer);
    for (size_t k = 0; k < e.rank; k++) e.shape[k] = g->shape[id][k];
    memcpy(y, g->tap[layer][id], count * sizeof *y);
    if (pick(g, 3) == 0) spoil(g, y, count, g->shape[id][g->rank[id] - 1]);
    if (id == Q3_TAP_TOPK_INDICES && pick(g, 2) == 0) {
        for (size_t i = 0; i < count; i++)
            ids[i] = y[i] > -1e9f && y[i] < 1e9f ? (int64_t)y[i] : INT64_MIN;
        e.dtype = Q3_I64, e.data = ids;
    }
    if (pick(g, 60) == 0) e.rank = 1, e.shape[0] = count; /* another shape */
    return q3_judge_tensor(j, &e, error);
}

/* ==== One model =============================================================================== */

static void judge(garden *g, size_t seen[Q3_VERDICT_COUNT])
{
    static const q3_accumulate sums[] = {Q3_ACCUMULATE_F32, Q3_ACCUMULATE_F32, Q3_ACCUMULATE_BF16,
                                         Q3_ACCUMULATE_TF32};
    const q3_judge_options options = {
        .free_running = pick(g, 12) == 0, .strict = pick(g, 2) == 0,
        .accumulate = ONE_OF(g, sums), .kv = (q3_dtype)(pick(g, 6) == 0 ? pick(g, 3) : 0),
        .router = (q3_dtype)(pick(g, 6) == 0 ? pick(g, 3) : 0)};
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_error error;
    q3_dtype dtype = g->dtype;
    q3_entry positions = {.name = "position_ids", .dtype = Q3_I64, .rank = 1, .shape = {g->T},
                          .data = g->positions};
    q3_status status = q3_judge_open(&j, &g->c, &options, &error);
    if (status == Q3_OK) status = q3_judge_tokens(j, g->ids, g->T, &error);
    if (status == Q3_OK) status = q3_judge_tensor(j, &positions, &error);
    size_t hidden = pick(g, 3);
    for (size_t l = 0; l < g->c.num_hidden_layers; l++)
        for (size_t i = 0; i < Q3_TAP_COUNT && status == Q3_OK; i++) {
            q3_tap_id id = (q3_tap_id)i;
            if ((l > 0 && !q3_tap_in_layer(id)) || pick(g, 4) < hidden) continue;
            if (q3_tap_exists(&g->c, 0, g->c.num_hidden_layers, id, l))
                status = give(g, j, id, l, &error);
        }
    if (status == Q3_OK) status = q3_judge_prepare(j, &dtype, &error);
    if (status == Q3_OK) status = q3_judge_run(j, g->f.weights, g->dtype, &report, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    for (size_t i = 0; status == Q3_OK && i < q3_report_count(report); i++) {
        const q3_finding *f = q3_report_finding(report, i);
        CHECK(memchr(f->looks_like, 0, sizeof f->looks_like) != NULL);
        seen[f->verdict]++;
    }
    q3_report_close(report);
    q3_judge_close(j);
}

static void close_garden(garden *g)
{
    for (size_t l = 0; l < 2; l++)
        for (size_t i = 0; i < Q3_TAP_COUNT; i++) free(g->tap[l][i]);
    fixture_close(&g->f);
    free(g);
}

/* ==== Known edges ============================================================================= */

/* One tensor of a model is y; what the diagnosis tries then must be tried where it can be. */
static void judge_edge(garden *g, q3_tap_id id, const float *y)
{
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_error error;
    char name[Q3_TAP_NAME_SIZE];
    q3_dtype dtype = g->dtype;
    q3_entry positions = {.name = "position_ids", .dtype = Q3_I64, .rank = 1, .shape = {g->T},
                          .data = g->positions};
    q3_entry e = {.name = name, .dtype = Q3_F32, .rank = g->rank[id], .data = y};
    q3_tap_name(name, id, 0);
    for (size_t k = 0; k < e.rank; k++) e.shape[k] = g->shape[id][k];
    q3_status status = q3_judge_open(&j, &g->c, NULL, &error);
    if (status == Q3_OK) status = q3_judge_tokens(j, g->ids, g->T, &error);
    if (status == Q3_OK) status = q3_judge_tensor(j, &positions, &error);
    if (status == Q3_OK) status = q3_judge_tensor(j, &e, &error);
    if (status == Q3_OK) status = q3_judge_prepare(j, &dtype, &error);
    if (status == Q3_OK) status = q3_judge_run(j, g->f.weights, g->dtype, &report, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    q3_report_close(report);
    q3_judge_close(j);
}

static garden *edge_model(q3_rope rope, size_t hd, size_t most, size_t start, size_t T)
{
    garden *g = memory(1, sizeof *g);
    g->key = 7;
    g->c = (q3_config){.vocab_size = 9, .hidden_size = 4, .intermediate_size = 4,
                       .num_hidden_layers = 1, .num_attention_heads = 2, .num_key_value_heads = 1,
                       .head_dim = hd, .max_position_embeddings = most, .num_experts_per_tok = 1,
                       .moe_intermediate_size = 4, .decoder_sparse_step = 1, .pad_token_id = -1,
                       .rms_norm_eps = 1e-6, .rope = rope};
    g->T = T, g->start = start;
    for (size_t t = 0; t < T; t++) g->ids[t] = (int32_t)t, g->positions[t] = (int64_t)(start + t);
    make_weights(g);
    run_right(g);
    return g;
}

/* Cosines that no theta has, and the search for one leaves float64, to either side. */
static void test_no_theta(void)
{
    for (size_t n = 0; n < 60; n++) {
        static const float values[] = {0.0f, -1.0f, 0.999f};
        garden *g = edge_model((q3_rope){.rope_theta = 1e4}, 256, 4096, n % 2 ? 2 : 5000, 3);
        size_t count = g->count[Q3_TAP_COS];
        float *y = memory(count, sizeof *y);
        for (size_t i = 0; i < count; i++) y[i] = 1.0f;
        size_t last = count - 256, a = n % 10 + 1, b = a + 1 + n / 10 * 20;
        y[last + a] = values[n % 3];
        y[last + b] = 0.9982f; /* an angle of 0.06 */
        judge_edge(g, Q3_TAP_COS, y);
        free(y);
        close_garden(g);
    }
}

/* Dynamic RoPE over half of 4 dimensions has no theta; with the factor that the lengths suggest it
 * has none in float32. */
static void test_dynamic(void)
{
    const q3_rope ropes[] = {
        {.type = Q3_ROPE_DYNAMIC, .rope_theta = 1e4, .factor = 2},
        {.type = Q3_ROPE_DYNAMIC, .rope_theta = 1e30, .factor = 1},
        {.type = Q3_ROPE_DYNAMIC, .rope_theta = 1e25, .factor = 1,
         .original_max_position_embeddings = 1},
    };
    for (size_t n = 0; n < 3; n++) {
        garden *g = edge_model(ropes[n], 4, n == 0 ? 2 : 9000, n == 0 ? 0 : 20000, 5);
        for (size_t id = Q3_TAP_COS; id <= Q3_TAP_K_ROPE; id++) {
            float *y = memory(g->count[id], sizeof *y);
            for (size_t i = 0; i < g->count[id]; i++) y[i] = (float)pick(g, 100) / 64 - 0.75f;
            if (id == Q3_TAP_COS || id == Q3_TAP_SIN || id >= Q3_TAP_Q_ROPE)
                judge_edge(g, (q3_tap_id)id, y);
            free(y);
        }
        close_garden(g);
    }
}

int main(int argc, char **argv)
{
    size_t models = argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : MODELS;
    size_t first = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 0, seen[Q3_VERDICT_COUNT] = {0};
    (void)fixture_by_rule, (void)fixture_from_folder; /* of model.h */
    for (size_t n = first; n < first + models; n++) {
        garden *g = memory(1, sizeof *g);
        g->key = rule_key("garbage", "") + n;
        if (argc > 2) printf("%zu\n", n), fflush(stdout);
        choose_config(g);
        make_weights(g);
        run_right(g);
        judge(g, seen);
        close_garden(g);
    }
    test_no_theta();
    test_dynamic();
    for (size_t v = 0; v < Q3_VERDICT_COUNT; v++)
        CHECKF(seen[v] > 0, "verdict %s: never given", q3_verdict_name((q3_verdict)v));
    return t_done("garbage");
}
