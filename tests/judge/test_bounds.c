/* SPDX-License-Identifier: MIT */
/* Bounds at their ends, each with values made here in plain loops: what one rounding less may
 * change of a rotation, and no more; values of attention whose partial sums are rounded, declared;
 * an infinity in one row, which says nothing of the others (MODEL.md 12.3, 12.4, 12.7). */
#include "judge/judge.h"
#include "model.h"

enum { T = 64, M = 64, H = 2, HD = 16, Q = H * HD };

static const q3_config config = {
    .vocab_size = 40, .hidden_size = M, .intermediate_size = 8, .num_hidden_layers = 1,
    .num_attention_heads = H, .num_key_value_heads = 1, .head_dim = HD,
    .max_position_embeddings = 4096, .decoder_sparse_step = 1, .pad_token_id = -1,
    .rms_norm_eps = 1e-6, .rope = {.rope_theta = 1e6}};

static fixture f;
static int64_t ids[T];

/* The verdict of the last of these tensors. */
static q3_verdict judged(q3_dtype dtype, q3_accumulate accumulate, const q3_entry *entries,
                         size_t count)
{
    q3_judge *judge = NULL;
    q3_report *report = NULL;
    q3_error error = {""};
    q3_verdict verdict = Q3_VERDICT_MISSING;
    const q3_judge_options options = {.accumulate = accumulate};
    const q3_entry all_ids = {"input_ids", Q3_I64, 1, {T}, ids};
    q3_status status = q3_judge_open(&judge, &config, &options, &error);
    if (status == Q3_OK) status = q3_judge_tensor(judge, &all_ids, &error);
    for (size_t i = 0; i < count && status == Q3_OK; i++)
        status = q3_judge_tensor(judge, &entries[i], &error);
    if (status == Q3_OK) status = q3_judge_run(judge, f.weights, dtype, &report, &error);
    CHECKF(report != NULL, "%s", error.text);
    for (size_t i = 0; report != NULL && i < q3_report_count(report); i++)
        if (strcmp(q3_report_finding(report, i)->name, entries[count - 1].name) == 0)
            verdict = q3_report_finding(report, i)->verdict;
    q3_report_close(report);
    q3_judge_close(judge);
    return verdict;
}

/* 0.75 - 0.734375 in bfloat16: the result's ulp is 2^-13, half an ulp of either product 2^-9. A
 * product that is not rounded may move the sum by that, and the sum by its own ulp: by 33 ulp. */
static void test_rotation(void)
{
    static float x[T * Q], cos[T * HD], sin[T * HD], y[T * Q];
    const q3_entry entries[] = {
        {"model.rotary_emb.cos", Q3_F32, 2, {T, HD}, cos},
        {"model.rotary_emb.sin", Q3_F32, 2, {T, HD}, sin},
        {"model.layers.0.self_attn.q_norm.output", Q3_F32, 3, {T, H, HD}, x},
        {"model.layers.0.self_attn.q_rope.output", Q3_F32, 3, {T, H, HD}, y}};
    for (size_t i = 0; i < T * Q; i++) x[i] = 1.0f;
    for (size_t i = 0; i < T * HD; i++) cos[i] = 0.75f, sin[i] = 0.734375f;
    for (size_t i = 0; i < T * Q; i++) y[i] = i % HD < HD / 2 ? 0.015625f : 1.484375f;
    CHECK(judged(Q3_BF16, Q3_ACCUMULATE_F32, entries, 4) == Q3_VERDICT_EXACT);
    y[3 * Q] += 33 * 0x1p-13f;
    CHECK(judged(Q3_BF16, Q3_ACCUMULATE_F32, entries, 4) == Q3_VERDICT_ROUNDING);
    y[3 * Q] += 0x1p-13f;
    CHECK(judged(Q3_BF16, Q3_ACCUMULATE_F32, entries, 4) == Q3_VERDICT_DIFFERS);
}

/* The weighted sum of V, key by key, each partial sum rounded to bfloat16. */
static void test_partial_sums(void)
{
    static float v[T * HD], probs[H * T * T], y[T * Q];
    const q3_entry entries[] = {
        {"model.layers.0.self_attn.v_proj.output", Q3_F32, 2, {T, HD}, v},
        {"model.layers.0.self_attn.probs.output", Q3_F32, 3, {H, T, T}, probs},
        {"model.layers.0.self_attn.o_proj.input", Q3_F32, 2, {T, Q}, y}};
    for (size_t i = 0; i < T * HD; i++) v[i] = 0.5f + (float)(i * 37 % 101) / 101.0f;
    for (size_t h = 0; h < H; h++)
        for (size_t t = 0; t < T; t++) {
            for (size_t s = 0; s <= t; s++) probs[(h * T + t) * T + s] = 1.0f / (float)(t + 1);
            for (size_t d = 0; d < HD; d++) {
                float sum = 0;
                for (size_t s = 0; s <= t; s++)
                    sum = q3_round((double)sum + (double)(1.0f / (float)(t + 1)) *
                                                     (double)v[s * HD + d], Q3_BF16);
                y[t * Q + h * HD + d] = sum;
            }
        }
    CHECK(judged(Q3_F32, Q3_ACCUMULATE_BF16, entries, 3) == Q3_VERDICT_WITHIN);
    CHECK(judged(Q3_F32, Q3_ACCUMULATE_F32, entries, 3) == Q3_VERDICT_DIFFERS);
}

/* Token 0's input holds an infinity, so that its sums are infinite, and one of them is no number:
 * an ulp of token 9 is within its bound all the same, and no rounding in another place. */
static void test_infinity(void)
{
    static float x[T * M], w[M], y[T * Q];
    const q3_entry entries[] = {
        {"model.layers.0.input_layernorm.output", Q3_F32, 2, {T, M}, x},
        {"model.layers.0.self_attn.q_proj.output", Q3_F32, 2, {T, Q}, y}};
    for (size_t i = 0; i < T * M; i++) x[i] = (float)(int)(i * 53 % 97) / 97.0f - 0.5f;
    uint32_t infinity = 0x7F800000;
    memcpy(&x[5], &infinity, sizeof infinity);
    memset((uint8_t *)(uintptr_t)f.layers[0].q_proj.data + 2 * 5, 0, 2); /* 0 times infinity */
    for (size_t o = 0; o < Q; o++) {
        q3_widen(w, f.layers[0].q_proj, o * M, M, Q3_F32);
        for (size_t t = 0; t < T; t++) {
            double sum = 0;
            for (size_t k = 0; k < M; k++) sum += (double)w[k] * (double)x[t * M + k];
            y[t * Q + o] = (float)sum;
        }
    }
    uint32_t bits;
    memcpy(&bits, &y[9 * Q + 4], sizeof bits);
    bits++;
    memcpy(&y[9 * Q + 4], &bits, sizeof bits);
    CHECK(judged(Q3_F32, Q3_ACCUMULATE_F32, entries, 2) == Q3_VERDICT_WITHIN);
}

int main(void)
{
    for (size_t t = 0; t < T; t++) ids[t] = (int64_t)(t * 7 % config.vocab_size);
    fixture_of(&f, &config, "bounds");
    test_rotation();
    test_partial_sums();
    test_infinity();
    fixture_close(&f);
    return t_done("bounds");
}
