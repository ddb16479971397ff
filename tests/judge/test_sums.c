/* SPDX-License-Identifier: MIT */
/* Sums whose partial sums are rounded to 16 bits, in one layer of 2048 channels: declared they are
 * within the bound, whether each product is added alone or 16 at a time, as tensor cores do it;
 * undeclared the option is named; and declared they do not hide another mistake, nor a sum that
 * overflowed (MODEL.md 12.7). */
#include "judge/judge.h"
#include "model.h"

enum { T = 8, M = 2048, H = 4, HD = 32, Q = H * HD };

static const q3_config config = {
    .vocab_size = 40, .hidden_size = M, .intermediate_size = 8, .num_hidden_layers = 1,
    .num_attention_heads = H, .num_key_value_heads = 2, .head_dim = HD,
    .max_position_embeddings = 4096, .decoder_sparse_step = 1, .pad_token_id = -1,
    .rms_norm_eps = 1e-6, .rope = {.rope_theta = 1e6}};

typedef struct given {
    q3_dtype dtype;
    int64_t ids[T];
    float norm[T * M], q[T * Q];
} given;

/* theirs: each `step` products are added exactly, then to the running sum, which is rounded to
 * float32 and to 16 bits. */
static void make(given *g, const fixture *f, size_t step)
{
    static float embedding[T * M], w[M];
    int32_t ids[T];
    for (size_t t = 0; t < T; t++) {
        ids[t] = (int32_t)(t * 7 % config.vocab_size);
        g->ids[t] = ids[t];
    }
    q3_embedding(embedding, ids, f->weights->embed_tokens, T, config.vocab_size, M, g->dtype);
    q3_rmsnorm(g->norm, embedding, f->layers[0].input_layernorm, T, M, 1e-6f, g->dtype);
    for (size_t o = 0; o < Q; o++) {
        q3_widen(w, f->layers[0].q_proj, o * M, M, g->dtype);
        for (size_t t = 0; t < T; t++) {
            float sum = 0;
            for (size_t i = 0; i < M; i += step) {
                double part = 0;
                for (size_t k = i; k < i + step; k++)
                    part += (double)w[k] * (double)g->norm[t * M + k];
                sum = q3_round((double)(float)((double)sum + part), g->dtype);
            }
            g->q[t * Q + o] = sum;
        }
    }
}

static q3_report *judged(const given *g, const fixture *f, q3_accumulate accumulate)
{
    q3_judge *judge = NULL;
    q3_report *report = NULL;
    q3_error error = {""};
    const q3_judge_options options = {.accumulate = accumulate};
    const q3_entry entries[] = {
        {"input_ids", Q3_I64, 1, {T}, g->ids},
        {"model.layers.0.input_layernorm.output", Q3_F32, 2, {T, M}, g->norm},
        {"model.layers.0.self_attn.q_proj.output", Q3_F32, 2, {T, Q}, g->q}};
    q3_status status = q3_judge_open(&judge, f->config, &options, &error);
    for (size_t i = 0; i < 3 && status == Q3_OK; i++)
        status = q3_judge_tensor(judge, &entries[i], &error);
    if (status == Q3_OK) status = q3_judge_run(judge, f->weights, g->dtype, &report, &error);
    CHECKF(report != NULL, "%s", error.text);
    q3_judge_close(judge);
    return report;
}

/* The verdict of q_proj, and what is said of it. */
static void expect(const given *g, const fixture *f, q3_accumulate accumulate, bool agrees,
                   const char *advice)
{
    q3_report *report = judged(g, f, accumulate);
    for (size_t i = 0; report != NULL && i < q3_report_count(report); i++) {
        const q3_finding *found = q3_report_finding(report, i);
        if (strcmp(found->name, "model.layers.0.self_attn.q_proj.output") != 0) continue;
        CHECKF((found->verdict <= Q3_VERDICT_WITHIN) == agrees,
               "dtype %d, --accumulate %d: %s, %.2f of the bound", (int)g->dtype, (int)accumulate,
               q3_verdict_name(found->verdict), found->max_bound_ratio);
        CHECKF(strstr(found->looks_like, advice) != NULL, "got %s, want %s", found->looks_like,
               advice);
    }
    q3_report_close(report);
}

/* Row 5 of q_proj: token 0's products rise beyond float16 half way, and come back. */
static void make_a_peak(const given *g, const fixture *f)
{
    uint8_t *row = (uint8_t *)(uintptr_t)f->layers[0].q_proj.data + 2 * 5 * M;
    for (size_t k = 0; k < M; k++) {
        bool positive = (g->norm[k] > 0) == (k < M / 2);
        row[2 * k] = 0x80; /* 256 or -256 */
        row[2 * k + 1] = positive ? 0x43 : 0xC3;
    }
}

int main(void)
{
    static fixture f;
    static given g;
    static const struct {
        q3_dtype dtype;
        q3_accumulate operands, sums;
        const char *advice;
    } cases[] = {
        {Q3_F16, Q3_ACCUMULATE_F16, Q3_ACCUMULATE_F16_SUMS, "declare --accumulate f16-sums"},
        {Q3_BF16, Q3_ACCUMULATE_BF16, Q3_ACCUMULATE_BF16_SUMS, "declare --accumulate bf16-sums"}};
    fixture_of(&f, &config, "sums");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        g.dtype = cases[i].dtype;
        for (size_t step = 1; step <= 16; step *= 16) {
            make(&g, &f, step);
            expect(&g, &f, cases[i].sums, true, "");
            expect(&g, &f, cases[i].operands, false, "");
            expect(&g, &f, Q3_ACCUMULATE_F32, false, cases[i].advice);
        }
        for (size_t t = 0; t < T; t++) g.q[t * Q + 5] *= 2; /* one channel */
        expect(&g, &f, cases[i].sums, false, "channel 5 alone");
    }
    /* No declaration allows a sum that overflowed: the cause is named, and no option. */
    g.dtype = Q3_F16;
    make_a_peak(&g, &f);
    make(&g, &f, 1);
    CHECK(g.q[5] - g.q[5] != 0);
    expect(&g, &f, Q3_ACCUMULATE_F16_SUMS, false, "sums accumulated in float16");
    expect(&g, &f, Q3_ACCUMULATE_F32, false, "sums accumulated in float16, explains 100 % of");
    fixture_close(&f);
    return t_done("sums");
}
