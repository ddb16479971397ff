/* SPDX-License-Identifier: MIT */
/* What judging costs, counted in multiplications and additions of the kernels, so that no clock is
 * asked: on a model by the rule whose linear maps take most of a forward pass, a check of an honest
 * run takes twice the pass at most, one with a search for a cause five times that; and logits are
 * computed of those tokens alone that the file has. (Where few taps are given, each mistake that is
 * tried runs through all that lies between: then the run's budget ends the search, MODEL.md 12.13.)
 *
 *   test_work */
#include "judge/judge.h"
#include "model.h"

enum { T = 160, MOST = 128 };

/* ==== Counting ================================================================================ */

static double work;
static const q3_kernels *real;

static void count_dots(const q3_dots *dots)
{
    double each = (double)dots->T * (double)dots->N * (double)dots->C;
    work += each * ((dots->y != NULL || dots->sums != NULL) + (dots->sizes != NULL));
    real->dots(dots);
}

static void count_values(double *sums, const float *probs, const float *rows, size_t stride,
                         size_t count, size_t n)
{
    work += (double)count * (double)n;
    real->values(sums, probs, rows, stride, count, n);
}

/* ==== A run =================================================================================== */

typedef struct run {
    q3_dtype dtype;
    int32_t ids[T];
    q3_entry taps[MOST];
    char names[MOST][Q3_TAP_NAME_SIZE];
    size_t count;
} run;

/* All taps but scores and probabilities, which come token by token. */
static void keep(void *user, const q3_tap *tap)
{
    run *r = user;
    size_t count = 1;
    if (tap->token_axis != 0) return;
    if (r->count == MOST) exit(1);
    q3_entry *e = &r->taps[r->count];
    *e = (q3_entry){r->names[r->count], tap->id == Q3_TAP_TOPK_INDICES ? Q3_I32 : Q3_F32, tap->rank,
                    {0}, NULL};
    q3_tap_name(r->names[r->count++], tap->id, tap->layer);
    for (size_t i = 0; i < tap->rank; i++) count *= e->shape[i] = tap->shape[i];
    void *copy = malloc(count * 4);
    if (copy == NULL) exit(1);
    e->data = memcpy(copy, tap->data, count * 4);
}

/* The forward pass with all taps; its work. */
static double run_forward(run *r, const fixture *f, q3_dtype dtype)
{
    const q3_run whole = {.dtype = dtype, .end_layer = f->config->num_hidden_layers, .rows = T,
                          .chunk = T};
    void *memory;
    q3_error error;
    r->dtype = dtype;
    r->count = 0;
    for (size_t t = 0; t < T; t++)
        r->ids[t] = (int32_t)((37 * t + t * t / 3) % f->config->vocab_size);
    q3_state *state = fixture_state(f, &whole, &memory);
    const q3_input input = {.tokens = r->ids, .count = T, .logit_rows = T};
    work = 0;
    CHECK(state != NULL && q3_forward(state, &input, keep, r, &error) == Q3_OK);
    free(memory);
    return work;
}

static void run_free(run *r)
{
    for (size_t i = 0; i < r->count; i++) free((void *)(uintptr_t)r->taps[i].data);
}

static q3_entry *find(run *r, const char *name)
{
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->names[i], name) == 0) return &r->taps[i];
    exit(1);
}

/* What a check does; worst: the verdict that it finds. */
static double run_check(const run *r, const fixture *f, q3_verdict worst)
{
    q3_judge *judge;
    q3_report *report = NULL;
    q3_error error = {""};
    q3_verdict found = Q3_VERDICT_EXACT;
    CHECK(q3_judge_open(&judge, f->config, NULL, &error) == Q3_OK);
    CHECK(q3_judge_tokens(judge, r->ids, T, &error) == Q3_OK);
    for (size_t i = 0; i < r->count; i++)
        CHECK(q3_judge_tensor(judge, &r->taps[i], &error) == Q3_OK);
    work = 0;
    CHECKF(q3_judge_run(judge, f->weights, r->dtype, &report, &error) == Q3_OK, "%s", error.text);
    double all = work;
    for (size_t i = 0; report != NULL && i < q3_report_count(report); i++) {
        q3_verdict verdict = q3_report_finding(report, i)->verdict;
        if (verdict > found && verdict < Q3_VERDICT_MISSING) found = verdict;
    }
    CHECKF(found == worst, "%s, %s", q3_verdict_name(found), q3_verdict_name(worst));
    q3_report_close(report);
    q3_judge_close(judge);
    return all;
}

/* ==== The three claims ======================================================================== */

static double test_honest(run *r, const fixture *f, double forward)
{
    double honest = run_check(r, f, Q3_VERDICT_EXACT);
    CHECKF(honest <= 2 * forward, "%.4g for %.4g", honest, forward);
    return honest;
}

/* The first rows of the logits alone: lm_head, its sizes, and what is looked at to see that no
 * other tokens' they are, in columns. */
static void test_some_logits(run *r, const fixture *f, double all)
{
    enum { ROWS = 8, COLUMNS = 256 };
    int64_t positions[ROWS];
    double M = (double)f->config->hidden_size, V = (double)f->config->vocab_size;
    q3_entry *logits = find(r, "lm_head.output");
    logits->shape[0] = ROWS;
    for (size_t i = 0; i < ROWS; i++) positions[i] = (int64_t)i;
    r->taps[r->count] = (q3_entry){"logit_positions", Q3_I64, 1, {ROWS}, positions};
    r->count++;
    double some = run_check(r, f, Q3_VERDICT_EXACT);
    r->count--;
    double less = 2 * (T - ROWS) * M * V + T * COLUMNS * M;
    CHECKF(all - some == less, "%.9g less, expected %.9g", all - some, less);
    double unsaid = run_check(r, f, Q3_VERDICT_EXACT);
    CHECKF(unsaid - some == T * COLUMNS * M, "%.9g more, expected %.9g", unsaid - some,
           T * COLUMNS * M);
    logits->shape[0] = T;
}

/* Something wrong that nobody knows: all that is known is looked for. */
static void test_search(run *r, const fixture *f, const char *name, double honest)
{
    q3_entry *e = find(r, name);
    float *values = (float *)(uintptr_t)e->data;
    for (size_t i = 0; i < T * e->shape[1]; i++)
        values[i] += (float)(i * 7919 % 31) * 0.01f * (i % 3 == 0 ? 1.0f : -1.0f);
    double searched = run_check(r, f, Q3_VERDICT_DIFFERS);
    CHECKF(searched <= 5 * honest, "%s: %.4g for %.4g", name, searched, honest);
}

int main(void)
{
    static const char *const wrong[] = {"model.layers.0.self_attn.q_proj.output", "lm_head.output",
                                        "model.layers.1.mlp.experts.down_proj.output"};
    static const q3_dtype dtypes[] = {Q3_BF16, Q3_F32, Q3_F16};
    static const q3_config config = {
        .vocab_size = 1024, .hidden_size = 128, .intermediate_size = 128, .num_hidden_layers = 2,
        .num_attention_heads = 4, .num_key_value_heads = 1, .head_dim = 32, .num_experts = 8,
        .num_experts_per_tok = 2, .moe_intermediate_size = 64, .decoder_sparse_step = 1,
        .max_position_embeddings = 4096, .rms_norm_eps = 1e-6, .norm_topk_prob = true,
        .pad_token_id = -1, .rope = {.rope_theta = 1e6, .factor = 1}};
    static run r;
    fixture f = {0};
    double honest = 0;
    fixture_of(&f, &config, "work");
    real = q3_best_kernels();
    q3_kernels counting = *real;
    counting.dots = count_dots;
    counting.values = count_values;
    counting.attend = NULL; /* the operators do it, and are counted */
    q3_use_kernels(&counting);
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        honest = test_honest(&r, &f, run_forward(&r, &f, dtypes[d]));
        if (dtypes[d] == Q3_BF16) test_some_logits(&r, &f, honest);
        run_free(&r);
    }
    /* as many in every dtype */
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        run_forward(&r, &f, Q3_BF16);
        test_search(&r, &f, wrong[i], honest);
        run_free(&r);
    }
    q3_use_kernels(NULL);
    fixture_close(&f);
    return t_done("work");
}
