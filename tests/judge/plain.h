/* SPDX-License-Identifier: MIT */
/* plain.h - the model once more, in plain loops: what the diagnosis is tested against. A world is a
 * config of golden/hf with weights by the rule (tests/rule.h), and every tap of its first layer.
 * The operators take their mistakes as options and use libm and float64; q3_round and q3_widen are
 * all that they share with the library. */
#ifndef Q3_TESTS_PLAIN_H
#define Q3_TESTS_PLAIN_H

#include "model.h"

#include <math.h>

enum { T = 12, START = 9 };

typedef struct world {
    fixture f;
    const q3_config *c;
    const q3_layer *l;
    q3_dtype dtype;
    int32_t ids[T];
    float *tap[Q3_TAP_COUNT], *last; /* last: the last layer's output */
    size_t row[Q3_TAP_COUNT];
    size_t M, H, K, hd, E, A, F, V;
} world;

static inline void *memory(size_t count, size_t size)
{
    void *block = calloc(count + 1, size);
    if (block == NULL) exit(1);
    return block;
}

static inline float D(const world *w, double x)
{
    return q3_round(x, w->dtype);
}

static inline double ulp(double value, q3_dtype dtype)
{
    static const int precision[3] = {24, 8, 11}, emin[3] = {-126, -126, -14};
    int exponent = emin[dtype];
    if (value != 0 && value - value == 0) frexp(value, &exponent), exponent--;
    if (exponent < emin[dtype]) exponent = emin[dtype];
    return ldexp(1.0, exponent - precision[dtype] + 1);
}

/* ==== Worlds ================================================================================== */

static inline void capture(void *user, const q3_tap *tap)
{
    world *w = user;
    const float *data = tap->data;
    if (tap->id == Q3_TAP_LAYER) memcpy(w->last, data, T * w->M * sizeof *data);
    if (tap->layer != 0) return;
    if (tap->id == Q3_TAP_SCORES || tap->id == Q3_TAP_PROBS) {
        size_t t = tap->first;
        for (size_t h = 0; h < w->H; h++)
            memcpy(w->tap[tap->id] + (t * w->H + h) * T, data + h * tap->shape[2],
                   tap->shape[2] * sizeof *data);
    } else if (tap->id == Q3_TAP_TOPK_INDICES) {
        for (size_t i = 0; i < T * w->A; i++)
            w->tap[tap->id][i] = (float)((const int32_t *)tap->data)[i];
    } else {
        memcpy(w->tap[tap->id], data, T * w->row[tap->id] * sizeof *data);
    }
}

static inline void world_open(world *w, const char *golden, const char *name, q3_dtype dtype)
{
    q3_error error;
    memset(w, 0, sizeof *w);
    char *folder = q3_join(golden, "/hf/", name);
    if (folder == NULL) exit(1);
    fixture_by_rule(&w->f, folder);
    free(folder);
    const q3_config *c = w->c = w->f.config;
    w->l = w->f.weights->layers;
    w->dtype = dtype;
    w->M = c->hidden_size, w->H = c->num_attention_heads, w->K = c->num_key_value_heads,
        w->hd = c->head_dim;
    w->E = c->num_experts, w->A = c->num_experts_per_tok, w->F = c->moe_intermediate_size,
        w->V = c->vocab_size;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        size_t shape[3], rank = q3_tap_shape(shape, c, (q3_tap_id)i, T);
        w->row[i] = i == Q3_TAP_SCORES || i == Q3_TAP_PROBS ? w->H * T : rank == 3
            ? shape[1] * shape[2] : shape[1];
        w->tap[i] = memory(T * w->row[i], sizeof(float));
    }
    w->last = memory(T * w->M, sizeof(float));
    for (size_t t = 0; t < T; t++) w->ids[t] = (int32_t)((t * 17 + 3) % w->V);
    q3_run run = {.dtype = dtype, .end_layer = c->num_hidden_layers, .start = START, .rows = T,
                  .chunk = T};
    q3_input input = {.tokens = w->ids, .count = T, .length = START + T, .logit_rows = T};
    void *block;
    q3_state *state = fixture_state(&w->f, &run, &block);
    if (state == NULL || q3_forward(state, &input, capture, w, &error) != Q3_OK) exit(1);
    free(block);
}

static inline void world_close(world *w)
{
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) free(w->tap[i]);
    free(w->last);
    fixture_close(&w->f);
}

/* ==== Plain operators ========================================================================= */

static inline float *widened(const world *w, q3_tensor tensor, size_t count)
{
    float *values = memory(count, sizeof *values);
    q3_widen(values, tensor, 0, count, w->dtype);
    return values;
}

/* y[n,N] = x[n,K] W^T, W[N,K] as floats. */
static inline void linear(const world *w, float *y, const float *x, const float *weight, size_t n,
                          size_t N, size_t K)
{
    for (size_t t = 0; t < n; t++)
        for (size_t o = 0; o < N; o++) {
            double sum = 0;
            for (size_t k = 0; k < K; k++) sum += (double)x[t * K + k] * (double)weight[o * K + k];
            y[t * N + o] = D(w, sum);
        }
}

typedef struct norm_options { double eps, plus; bool outside, centred, summed, late; } norm_options;

static inline void norm(const world *w, float *y, const float *x, const float *weight, size_t rows,
                        size_t n, norm_options o)
{
    for (size_t r = 0; r < rows; r++) {
        double mean = 0, square = 0;
        for (size_t i = 0; i < n; i++) mean += (double)x[r * n + i] / (double)n;
        if (!o.centred) mean = 0;
        for (size_t i = 0; i < n; i++) square += pow((double)x[r * n + i] - mean, 2);
        if (!o.summed) square /= (double)n;
        double root = o.outside ? sqrt(square) + o.eps : sqrt(square + o.eps);
        for (size_t i = 0; i < n; i++) {
            double v = ((double)x[r * n + i] - mean) / root;
            double g = (weight != NULL ? (double)weight[i] : 1) + o.plus;
            y[r * n + i] = D(w, g * (o.late ? v : (double)D(w, v)));
        }
    }
}

static inline double plain_eps(const world *w)
{
    return (double)(float)w->c->rms_norm_eps;
}

/* One cos or sin of a frequency that is computed here. */
static inline double angle_of(const world *w, double position, size_t j, double theta)
{
    return (double)(float)(position * (double)(float)(1 / (double)(float)pow(theta,
        2.0 * (double)j / (double)w->hd)));
}

static inline void table(const world *w, float *cosine, float *sine, double theta,
                         double (*position)(size_t))
{
    for (size_t t = 0; t < T; t++)
        for (size_t j = 0; j < w->hd / 2; j++) {
            double a = angle_of(w, position(t), j, theta);
            cosine[t * w->hd + j] = cosine[t * w->hd + w->hd / 2 + j] = D(w, cos(a));
            sine[t * w->hd + j] = sine[t * w->hd + w->hd / 2 + j] = D(w, sin(a));
        }
}

static inline double position_right(size_t t) { return (double)(START + t); }
static inline double position_next(size_t t) { return (double)(START + t + 1); }
static inline double position_zero(size_t t) { return (double)t; }
static inline double position_restart(size_t t) { return (double)(START + t % 5); }

/* pair: element j of n / 2 pairs is i and k; direction: of the sine. */
static inline void rope(const world *w, float *y, const float *x, const float *cosine,
                        const float *sine, size_t heads, bool interleaved, double direction)
{
    size_t half = w->hd / 2;
    for (size_t row = 0; row < T * heads; row++)
        for (size_t j = 0; j < half; j++) {
            size_t i = row * w->hd + (interleaved ? 2 * j : j);
            size_t k = row * w->hd + (interleaved ? 2 * j + 1 : j + half);
            double c = (double)cosine[row / heads * w->hd + j];
            double s = direction * (double)sine[row / heads * w->hd + j];
            double a = (double)x[i], b = (double)x[k];
            y[i] = D(w, (double)D(w, a * c) - (double)D(w, b * s));
            y[k] = D(w, (double)D(w, b * c) + (double)D(w, a * s));
        }
}

typedef struct attention_options {
    double scale, cap, sink, base;
    bool tiled_keys, tiled_values, divisor, stale, fp8_keys, shifted_values, strict;
    size_t future, window;
} attention_options;

static inline double e4m3(double x)
{
    int exponent;
    frexp(x, &exponent);
    if (exponent < -5) exponent = -5;
    double unit = ldexp(1, exponent - 4);
    return rint(x / unit) * unit;
}

static inline size_t key_head(const world *w, size_t h, bool tiled, bool divisor)
{
    if (divisor) return h / w->K < w->K ? h / w->K : w->K - 1;
    return tiled ? h % w->K : h / (w->H / w->K);
}

/* scores, probs: [T,H,T]; values: [T,H*hd]. */
static inline void attention(const world *w, float *scores, float *probs, float *values,
                             attention_options o)
{
    const float *q = w->tap[Q3_TAP_Q_ROPE], *k = w->tap[Q3_TAP_K_ROPE], *v = w->tap[Q3_TAP_V_PROJ];
    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < w->H; h++) {
            double s[T] = {0}, p[T], max = -1e300, sum = 0;
            size_t low = o.window != 0 && t + 1 > o.window ? t + 1 - o.window : 0;
            size_t end = t + 1 + o.future < T ? t + 1 + o.future : T, row = (t * w->H + h) * T;
            if (o.strict && t > 0) end = t;
            for (size_t i = low; i < end; i++) {
                size_t key = o.stale && i == t && t > 0 ? t - 1 : i;
                size_t head = key_head(w, h, o.tiled_keys, o.divisor);
                double dot = 0;
                for (size_t d = 0; d < w->hd; d++) {
                    double x = (double)k[(key * w->K + head) * w->hd + d];
                    dot += (double)q[(t * w->H + h) * w->hd + d] * (o.fp8_keys ? e4m3(x) : x);
                }
                s[i] = (double)D(w, (double)D(w, dot) * o.scale);
                if (o.cap > 0) s[i] = (double)D(w, o.cap * tanh(s[i] / o.cap));
                if (s[i] > max) max = s[i];
            }
            for (size_t i = low; i < end; i++) sum += p[i] = pow(o.base, s[i] - max);
            sum += o.sink * pow(o.base, -max);
            for (size_t i = 0; i < T; i++) {
                bool seen = i >= low && i < end;
                scores[row + i] = seen && i <= t ? (float)s[i] : 0.0f;
                probs[row + i] = seen ? D(w, p[i] / sum) : 0.0f;
            }
            for (size_t d = 0; d < w->hd; d++) {
                double y = 0;
                for (size_t i = low; i < end; i++) {
                    size_t from = o.shifted_values && i > 0 ? i - 1 : i;
                    size_t head = key_head(w, h, o.tiled_values, o.divisor);
                    y += (double)probs[row + i] * (double)v[(from * w->K + head) * w->hd + d];
                }
                values[(t * w->H + h) * w->hd + d] = D(w, y);
            }
        }
}

/* One of the three tensors of attention. */
static inline void attention_tap(const world *w, float *y, q3_tap_id id, attention_options o)
{
    float *s = memory(T * w->H * T, sizeof *s), *p = memory(T * w->H * T, sizeof *p);
    float *v = memory(T * w->H * w->hd, sizeof *v);
    attention(w, s, p, v, o);
    memcpy(y, id == Q3_TAP_SCORES ? s : id == Q3_TAP_PROBS ? p : v, T * w->row[id] * sizeof *y);
    free(s);
    free(p);
    free(v);
}

static inline attention_options right_attention(const world *w)
{
    attention_options o = {.scale = (double)(float)(1 / sqrt((double)w->hd)), .base = exp(1)};
    o.window = w->c->sliding_window;
    return o;
}

#endif
