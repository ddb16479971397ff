/* SPDX-License-Identifier: MIT */
/* operators.c - qwen3moe.c's operators, for Frama-C's Eva: every value of every element (NaN,
 * infinities and subnormals too) in arrays of exactly the documented number of elements. CASES,
 * which scripts/ci/formal.py defines, says which operator runs with which sizes. */
#include "__fc_builtin.h"

/*@ assigns \nothing; ensures \false; */
void q3_abort(const char *file, int line, const char *text);
#define _Alignof(type) 8 /* Frama-C does not know it */
#define Q3_ABORT q3_abort
#include "qwen3moe.c"

/* Any bytes. */
#define ANY(array) Frama_C_make_unknown((char *)(array), sizeof(array))
/* An array of n elements, n above 0, that hold anything. */
#define ARRAY(type, name, n) \
    type name[n];            \
    ANY(name)
/* The weight of n elements in a file of each dtype: any bytes, at any alignment. */
#define WEIGHT(name, n, dtype_)                          \
    uint8_t name##_bytes[(n) * ((dtype_) == Q3_F32 ? 4 : 2)]; \
    ANY(name##_bytes);                                   \
    q3_tensor name = {name##_bytes, dtype_}

static int32_t id_below(int32_t n)
{
    return Frama_C_interval(0, n - 1);
}

/* In a run of D with weights of W. */
#define RUN(name, ...)               \
    name(Q3_F32, Q3_F32, __VA_ARGS__)  \
    name(Q3_BF16, Q3_F16, __VA_ARGS__) \
    name(Q3_F16, Q3_BF16, __VA_ARGS__)

#define embedding(D, W, T, V, M)                                        \
    {                                                                   \
        float y[(T) * (M)];                                             \
        int32_t ids[T];                                                 \
        WEIGHT(w, (V) * (M), W);                                        \
        for (size_t i = 0; i < (T); i++) ids[i] = id_below(V);          \
        q3_embedding(y, ids, w, T, V, M, D);                            \
    }

#define rmsnorm(D, W, T, M)               \
    {                                     \
        ARRAY(float, x, (T) * (M));       \
        float y[(T) * (M)];               \
        WEIGHT(w, M, W);                  \
        float eps = Frama_C_float_interval(0.0f, 1.0f); \
        q3_rmsnorm(y, x, w, T, M, eps, D); \
        q3_rmsnorm(x, x, w, T, M, eps, D); \
    }

#define linear(D, W, T, N, C)                                 \
    {                                                         \
        ARRAY(float, x, (T) * (C));                           \
        float y[(T) * (N)];                                   \
        WEIGHT(w, (N) * (C), W);                              \
        WEIGHT(b, N, W);                                      \
        q3_tensor none = {NULL, Q3_F32};                      \
        q3_linear(y, x, w, b, T, N, C, D);                    \
        q3_linear(y, x, w, none, T, N, C, D);                 \
    }

#define rope_table(D, W, T, HD)                                             \
    {                                                                       \
        float cos[(T) * (HD)], sin[(T) * (HD)], inv_freq[(HD) / 2];         \
        for (size_t j = 0; j < (HD) / 2; j++)                               \
            inv_freq[j] = Frama_C_float_interval(0.0f, 1.0f);               \
        float scaling = Frama_C_float_interval(0.0f, 1e30f);                \
        size_t first = (size_t)Frama_C_interval(0, (1 << 20) - (T));        \
        q3_rope_table(cos, sin, inv_freq, scaling, T, first, HD, D);        \
    }

#define rope_apply(D, W, T, H, HD)                  \
    {                                               \
        ARRAY(float, x, (T) * (H) * (HD));          \
        ARRAY(float, cos, (T) * (HD));              \
        ARRAY(float, sin, (T) * (HD));              \
        float y[(T) * (H) * (HD)];                  \
        q3_rope_apply(y, x, cos, sin, T, H, HD, D); \
        q3_rope_apply(x, x, cos, sin, T, H, HD, D); \
    }

#define attention(D, W, T, H, K, HD, FIRST, S, WINDOW)                              \
    {                                                                               \
        ARRAY(float, q, (T) * (H) * (HD));                                          \
        ARRAY(float, k, (S) * (K) * (HD));                                          \
        ARRAY(float, v, (S) * (K) * (HD));                                          \
        float scores[(H) * (T) * (S)], probs[(H) * (T) * (S)], y[(T) * (H) * (HD)]; \
        double scratch[S];                                                          \
        q3_attention_scores(scores, q, k, T, H, K, HD, FIRST, S, WINDOW, D);        \
        ANY(scores);                                                                \
        q3_attention_probs(probs, scores, scratch, T, H, FIRST, S, WINDOW, D);      \
        ANY(probs);                                                                 \
        q3_attention_values(y, probs, v, T, H, K, HD, FIRST, S, WINDOW, D);         \
        q3_attention_probs(scores, scores, scratch, T, H, FIRST, S, WINDOW, D);     \
    }

#define router(D, W, T, E, A)                                               \
    {                                                                       \
        ARRAY(float, logits, (T) * (E));                                    \
        float probs[(T) * (E)], weights[(T) * (A)];                         \
        int32_t ids[(T) * (A)];                                             \
        bool norm = Frama_C_interval(0, 1);                                 \
        q3_router_probs(probs, logits, T, E);                               \
        ANY(probs);                                                         \
        q3_router_topk(ids, probs, T, E, A);                                \
        for (size_t i = 0; i < (T) * (A); i++) ids[i] = id_below(E);        \
        q3_router_weights(weights, probs, ids, T, E, A, norm, D);           \
    }

#define experts(D, W, T, E, A, N, C)                                                  \
    {                                                                                 \
        ARRAY(float, x, (T) * (C));                                                   \
        ARRAY(float, slots, (T) * (A) * (C));                                         \
        ARRAY(float, weights, (T) * (A));                                             \
        float y[(T) * (A) * (N)], scratch[(T) * ((C) + (N))], sum[(T) * (C)];         \
        int32_t ids[(T) * (A)];                                                       \
        WEIGHT(w, (N) * (C), W);                                                      \
        q3_mlp mlp[E];                                                                \
        for (size_t e = 0; e < (E); e++) mlp[e] = (q3_mlp){w, w, w};                  \
        for (size_t i = 0; i < (T) * (A); i++) ids[i] = id_below(E);                  \
        q3_expert_linear(y, x, ids, mlp, Q3_GATE_PROJ, scratch, T, E, A, N, C, D);    \
        q3_expert_linear(y, x, ids, mlp, Q3_UP_PROJ, scratch, T, E, A, N, C, D);      \
        q3_expert_linear(y, slots, ids, mlp, Q3_DOWN_PROJ, scratch, T, E, A, N, C, D); \
        q3_expert_combine(sum, slots, ids, weights, T, A, C, D);                      \
    }

#define elementwise(D, W, N)            \
    {                                   \
        ARRAY(float, a, N);             \
        ARRAY(float, b, N);             \
        float y[N];                     \
        q3_silu_map(y, a, N, D);        \
        q3_multiply(y, a, b, N, D);     \
        q3_residual_add(y, a, b, N, D); \
        q3_silu_map(a, a, N, D);        \
        q3_argmax(b, N);                \
    }

/* Every double, every bit pattern of a weight's element. */
#define conversions(D, W, N)                                        \
    {                                                               \
        double value;                                               \
        Frama_C_make_unknown((char *)&value, sizeof value);         \
        q3_round(value, D);                                         \
        q3_exp(value);                                              \
        q3_silu(value);                                             \
        q3_sqrt(value);                                             \
        WEIGHT(w, N, W);                                            \
        float y[N];                                                 \
        q3_widen(y, w, 0, N, D);                                    \
        float angle = Frama_C_float_interval(-0x1p20f, 0x1p20f);    \
        q3_sin(angle);                                              \
        q3_cos(angle);                                              \
    }

int main(void)
{
    CASES
    return 0;
}
