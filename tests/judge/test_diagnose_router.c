/* SPDX-License-Identifier: MIT */
/* The diagnosis of the router and the experts: test_diagnose.c has the rest, and what both are.
 *
 * test_diagnose_router GOLDEN */
#include "troubles.h"

static double low(double x)
{
    return (double)q3_round(x, Q3_BF16);
}

static void make_router(const world *w, float *y, int variant)
{
    float *g = widened(w, w->l->gate, w->E * w->M);
    const float *logits = w->tap[Q3_TAP_GATE];
    if (variant == 0) linear(w, y, w->tap[Q3_TAP_POST_ATTENTION_INPUT], g, T, w->E, w->M);
    for (size_t t = 0; t < T && variant > 0; t++) {
        double sum = 0, twice = 0;
        for (size_t e = 0; e < w->E; e++) sum += exp((double)logits[t * w->E + e]);
        for (size_t e = 0; e < w->E; e++) twice += exp(exp((double)logits[t * w->E + e]) / sum);
        for (size_t e = 0; e < w->E; e++) {
            double x = (double)logits[t * w->E + e], p = exp(x) / sum;
            if (variant == 2) p = exp(p) / twice;
            if (variant == 3) p = 1 / (1 + exp(-x));
            y[t * w->E + e] = variant == 4 ? q3_round(p, Q3_BF16) : (float)p;
        }
    }
    free(g);
}

/* 0: softmax in bfloat16, step by step; exp(logit - logsumexp) in bfloat16, 1: step by step,
 * 2: the logarithm rounded once. */
static void make_low_router(const world *w, float *y, int variant)
{
    for (size_t t = 0; t < T; t++) {
        const float *logits = w->tap[Q3_TAP_GATE] + t * w->E;
        double max = (double)logits[0], sum = 0;
        for (size_t e = 0; e < w->E; e++) max = fmax(max, (double)logits[e]);
        for (size_t e = 0; e < w->E; e++)
            sum += variant == 2 ? exp((double)logits[e]) : low(exp(low((double)logits[e] - max)));
        double whole = variant == 2 ? low(log(sum)) : low(low(log(low(sum))) + max);
        for (size_t e = 0; e < w->E; e++) {
            double x = (double)logits[e];
            double p = variant == 0 ? low(exp(low(x - max))) / low(sum) : exp(low(x - whole));
            y[t * w->E + e] = (float)low(p);
        }
    }
}

static void make_choice(const world *w, float *y, int variant)
{
    const float *p = w->tap[Q3_TAP_ROUTER_PROBS];
    if (variant == 1) {
        y[2 * w->A] = y[2 * w->A + 1];
        return;
    }
    for (size_t t = 0; t < T; t++)
        for (size_t e = 0; e < w->E; e++) {
            size_t below = 0;
            for (size_t i = 0; i < w->E; i++) below += p[t * w->E + i] < p[t * w->E + e];
            if (below < w->A)
                y[t * w->A + (variant == 2 ? w->A - 1 - below : below)] = (float)e;
        }
}

/* Whether so many slots with the expert of this one come before it, in the order of the tokens, or
 * all first slots before the others. */
static bool dropped(const world *w, size_t t, size_t a, size_t most, bool by_rank)
{
    const float *ids = w->tap[Q3_TAP_TOPK_INDICES];
    size_t before = 0;
    for (size_t s = 0; s < T; s++)
        for (size_t b = 0; b < w->A; b++) {
            bool earlier = by_rank ? b < a || (b == a && s < t) : s < t || (s == t && b < a);
            before += earlier && ids[s * w->A + b] == ids[t * w->A + a];
        }
    return before >= most;
}

/* down_proj of slots beyond a capacity of 3 is 0. */
static void make_dropped(const world *w, float *y, int variant)
{
    (void)variant;
    for (size_t slot = 0; slot < T * w->A; slot++)
        if (dropped(w, slot / w->A, slot % w->A, 3, false))
            memset(y + slot * w->M, 0, w->M * sizeof *y);
}

static void weights_of(const world *w, float *y, int variant)
{
    const float *p = w->tap[Q3_TAP_ROUTER_PROBS], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    bool normed = w->c->norm_topk_prob != (variant == 0);
    for (size_t t = 0; t < T; t++) {
        double sum = 0, chosen[16];
        for (size_t a = 0; a < w->A; a++) {
            chosen[a] = (double)p[t * w->E + (size_t)ids[t * w->A + a]];
            if (variant == 3 && a + 1 == w->A) chosen[a] = 0;
            if (variant == 4)
                chosen[a] = (double)w->tap[Q3_TAP_GATE][t * w->E + (size_t)ids[t * w->A + a]];
            if (variant == 5 || variant == 16) chosen[a] = (double)D(w, chosen[a]);
            sum += chosen[a];
            if (variant == 16) sum = (double)D(w, sum);
        }
        for (size_t a = 0; a < w->A; a++) {
            size_t from = variant == 2 ? w->A - 1 - a : variant == 15 ? (a + 1) % w->A : a;
            size_t below = 0;
            for (size_t b = 0; b < w->A && (variant == 1 || variant == 12); b++) { /* by id */
                below = 0;
                for (size_t i = 0; i < w->A; i++) below += ids[t * w->A + i] < ids[t * w->A + b];
                if (variant == 1 ? below == a : b == a) from = variant == 1 ? b : below;
            }
            double x = chosen[from];
            if (normed && variant != 4) x /= variant == 5 ? (double)q3_round(sum, w->dtype) : sum;
            if (variant == 6) x = 1.0 / (double)w->A;
            if (variant == 7) x = pow((double)D(w, x), 2);
            if (variant == 8 && a + 1 == w->A) x = 0;
            if (variant == 9 && ids[t * w->A + a] == 2.0f) x = 0;
            if (variant == 10 && ids[t * w->A + a] == 2.0f && t > 4) x = 0;
            if (variant == 13 && dropped(w, t, a, 2, false)) x = 0;
            if (variant == 14 && dropped(w, t, a, 2, true)) x = 0;
            if (variant == 11 && ids[t * w->A + a] == 4.0f) x *= 1 + 0.3 * (double)(t + 1);
            y[t * w->A + a] = D(w, x);
        }
    }
}

static q3_tensor expert_weight(const world *w, size_t e, q3_tap_id id)
{
    const q3_mlp *m = &w->l->experts[e];
    if (id == Q3_TAP_EXPERTS_GATE_PROJ) return m->gate_proj;
    return id == Q3_TAP_EXPERTS_UP_PROJ ? m->up_proj : m->down_proj;
}

/* gate_proj of every slot. */
static void make_experts(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_POST_ATTENTION_LAYERNORM], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    float *in = memory(w->M, sizeof *in), *both = memory(2 * w->F * w->M, sizeof *both);
    for (size_t slot = 0; slot < T * w->A; slot++) {
        size_t e = (size_t)ids[slot];
        if (variant == 3 && (e == 2 || e == 3)) e = 5 - e;
        q3_widen(both, expert_weight(w, e, Q3_TAP_EXPERTS_GATE_PROJ), 0, w->F * w->M, w->dtype);
        q3_widen(both + w->F * w->M, expert_weight(w, e, Q3_TAP_EXPERTS_UP_PROJ), 0, w->F * w->M,
                 w->dtype);
        for (size_t i = 0; i < w->M; i++) {
            double v = (double)x[slot / w->A * w->M + i];
            in[i] = variant == 2 ? D(w, v * (double)w->tap[Q3_TAP_TOPK_WEIGHTS][slot]) : (float)v;
        }
        for (size_t o = 0; o < w->F; o++) {
            size_t row = variant == 0 ? w->F + o : variant == 1 ? 2 * o : o;
            linear(w, y + slot * w->F + o, in, both + row * w->M, 1, 1, w->M);
            if (variant == 4 && e == 3 && o == 5)
                y[slot * w->F + o] = D(w, 1.1 * (double)y[slot * w->F + o]);
        }
    }
    free(in), free(both);
}

/* up_proj of every slot, of gate's and up's rows taken in turn. */
static void make_up(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_POST_ATTENTION_LAYERNORM], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    float *both = memory(2 * w->F * w->M, sizeof *both);
    (void)variant;
    for (size_t slot = 0; slot < T * w->A; slot++) {
        size_t e = (size_t)ids[slot];
        q3_widen(both, expert_weight(w, e, Q3_TAP_EXPERTS_GATE_PROJ), 0, w->F * w->M, w->dtype);
        q3_widen(both + w->F * w->M, expert_weight(w, e, Q3_TAP_EXPERTS_UP_PROJ), 0, w->F * w->M,
                 w->dtype);
        for (size_t o = 0; o < w->F; o++)
            linear(w, y + slot * w->F + o, x + slot / w->A * w->M, both + (2 * o + 1) * w->M, 1, 1,
                   w->M);
    }
    free(both);
}

static void make_act(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_EXPERTS_GATE_PROJ], *up = w->tap[Q3_TAP_EXPERTS_UP_PROJ];
    for (size_t i = 0; i < T * w->A * w->F; i++) {
        double v = (double)x[i], silu = (double)D(w, v / (1 + exp(-v))), u = (double)up[i];
        switch (variant) {
        case 0: y[i] = D(w, v * (1 + erf(v / sqrt(2))) / 2); break;
        case 1:
            y[i] = D(w, v / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (v + 0.044715 * v * v * v))));
            break;
        case 2: y[i] = D(w, v > 0 ? v : 0); break;
        case 3: y[i] = D(w, v * fmin(6, fmax(0, v + 3)) / 6); break;
        case 4: y[i] = D(w, v / (1 + exp(-1.702 * v))); break;
        case 5: y[i] = D(w, v * (double)D(w, 1 / (1 + exp(-v)))); break;
        case 6: y[i] = D(w, silu * (double)D(w, u + 1)); break;
        default: y[i] = D(w, silu * fmin(0.75, fmax(-0.75, u))); break;
        }
    }
}

static void make_down(const world *w, float *y, int variant)
{
    const float *x = w->tap[Q3_TAP_EXPERTS_DOWN_PROJ_INPUT], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    size_t n = w->F - (variant == 0 ? 8 : 0);
    float *weight = memory(w->M * w->F, sizeof *weight);
    for (size_t slot = 0; slot < T * w->A; slot++) {
        q3_widen(weight, w->l->experts[(size_t)ids[slot]].down_proj, 0, w->M * w->F, w->dtype);
        for (size_t o = 0; o < w->M; o++) {
            double sum = 0;
            for (size_t k = 0; k < n; k++)
                sum += (double)x[slot * w->F + k] * (double)weight[variant == 1 ? k * w->M + o
                    : o * w->F + k];
            y[slot * w->M + o] = D(w, sum);
        }
    }
    free(weight);
}

/* Experts by ascending id. */
static void make_mlp(const world *w, float *y, int variant)
{
    const float *down = w->tap[Q3_TAP_EXPERTS_DOWN_PROJ], *ids = w->tap[Q3_TAP_TOPK_INDICES];
    float *weights = memory(T * w->A, sizeof *weights);
    weights_of(w, weights, variant);
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < w->M; i++) {
            double sum = 0;
            for (size_t e = 0; e < w->E; e++)
                for (size_t a = 0; a < w->A; a++)
                    if (ids[t * w->A + a] == (float)e) {
                        double x = (double)down[(t * w->A + a) * w->M + i];
                        double scaled = (double)D(w, x * (double)weights[t * w->A + a]);
                        sum = (double)D(w, sum + scaled);
                    }
            y[t * w->M + i] = (float)sum;
        }
    free(weights);
}

/* The layer's output, nothing else known. */
static void make_layer(const world *w, float *y, int variant)
{
    make_mlp(w, y, variant);
    for (size_t i = 0; i < T * w->M; i++)
        y[i] = D(w, (double)w->tap[Q3_TAP_POST_ATTENTION_INPUT][i] + (double)y[i]);
}

static const trouble troubles[] = {
    {"router reads the residual stream", "base", Q3_BF16, Q3_TAP_GATE, 0, make_router, 0},
    {"router logits are probabilities", "base", Q3_F32, Q3_TAP_GATE, 0, make_router, 1},
    {"softmax applied twice", "base", Q3_BF16, Q3_TAP_ROUTER_PROBS, 0, make_router, 2},
    {"sigmoid instead of softmax", "base", Q3_BF16, Q3_TAP_ROUTER_PROBS, 0, make_router, 3},
    {"router probabilities rounded to bfloat16", "base", Q3_BF16, Q3_TAP_ROUTER_PROBS, 0,
     make_router, 4},
    {"router softmax computed in bfloat16 throughout", "base", Q3_BF16, Q3_TAP_ROUTER_PROBS, 0,
     make_low_router, 0},
    {"router probabilities as exp(logit - logsumexp) in bfloat16", "base", Q3_BF16,
     Q3_TAP_ROUTER_PROBS, 0, make_low_router, 1},
    {"router probabilities as exp(logit - logsumexp) in bfloat16", "base", Q3_BF16,
     Q3_TAP_ROUTER_PROBS, 0, make_low_router, 2},
    {"the smallest chosen", "base", Q3_BF16, Q3_TAP_TOPK_INDICES, 0, make_choice, 0},
    {"the smallest chosen", "base", Q3_BF16, Q3_TAP_TOPK_INDICES, 0, make_choice, 2},
    {"the same expert chosen twice in 1 of 12", "base", Q3_BF16, Q3_TAP_TOPK_INDICES, 0,
     make_choice, 1},
    {"top-k weights not renormalised", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 0},
    {"weights paired in the order of the ids", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of,
     1},
    {"weights paired in reverse", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 2},
    {"weights permuted within their rows in 12 of 12 tokens", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS,
     0, weights_of, 15},
    {"weights renormalised by a sum that is rounded after each slot", "base", Q3_BF16,
     Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 16},
    {"capacity of 2 tokens an expert", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 13},
    {"capacity of 3 tokens an expert", "base", Q3_BF16, Q3_TAP_EXPERTS_DOWN_PROJ, 0, make_dropped,
     0},
    {"capacity of 2 tokens an expert, slots beyond it dropped, explains", "base", Q3_BF16,
     Q3_TAP_MLP, 0, make_mlp, 13},
    {"capacity of 2 tokens an expert, slots beyond it dropped (first choices come first)", "base",
     Q3_BF16, Q3_TAP_MLP, 0, make_mlp, 14},
    {"capacity of 2 tokens an expert", "base", Q3_F32, Q3_TAP_LAYER, INNER, make_layer, 13},
    {"ids sorted, their weights left", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 12},
    {"ids sorted, their weights left", "base", Q3_BF16, Q3_TAP_MLP,
     HIDE(Q3_TAP_TOPK_INDICES, Q3_TAP_TOPK_WEIGHTS), make_mlp, 12},
    {"weights paired in the order of the ids", "base", Q3_BF16, Q3_TAP_MLP,
     HIDE(Q3_TAP_TOPK_INDICES, Q3_TAP_TOPK_WEIGHTS), make_mlp, 1},
    {"k - 1 experts", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 3},
    {"raw router logits", "base", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0, weights_of, 4},
    {"top-k weights renormalised though", "no-renormalise", Q3_BF16, Q3_TAP_TOPK_WEIGHTS, 0,
     weights_of, 0},
    {"gate and up swapped", "base", Q3_BF16, Q3_TAP_EXPERTS_GATE_PROJ, 0, make_experts, 0},
    {"gate and up interleaved", "base", Q3_BF16, Q3_TAP_EXPERTS_GATE_PROJ, 0, make_experts, 1},
    {"gate and up interleaved", "base", Q3_BF16, Q3_TAP_EXPERTS_UP_PROJ, 0, make_up, 0},
    {"routing weight applied before", "base", Q3_BF16, Q3_TAP_EXPERTS_GATE_PROJ, 0, make_experts,
     2},
    {"experts permuted: 2 has the weights of 3, 3 has the weights of 2,", "base", Q3_BF16,
     Q3_TAP_EXPERTS_GATE_PROJ, 0, make_experts, 3},
    {"channel 5 of expert 3 alone scaled", "base", Q3_BF16, Q3_TAP_EXPERTS_GATE_PROJ, 0,
     make_experts, 4},
    {"GELU", "base", Q3_F32, Q3_TAP_EXPERTS_ACT_FN, 0, make_act, 0},
    {"tanh GELU", "base", Q3_F32, Q3_TAP_EXPERTS_ACT_FN, 0, make_act, 1},
    {"ReLU", "base", Q3_BF16, Q3_TAP_EXPERTS_ACT_FN, 0, make_act, 2},
    {"hard swish", "base", Q3_BF16, Q3_TAP_EXPERTS_ACT_FN, 0, make_act, 3},
    {"x sigmoid(1.702 x)", "base", Q3_BF16, Q3_TAP_EXPERTS_ACT_FN, 0, make_act, 4},
    {"sigmoid rounded", "base", Q3_BF16, Q3_TAP_EXPERTS_ACT_FN, 0, make_act, 5},
    {"up + 1", "base", Q3_BF16, Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, 0, make_act, 6},
    {"up clamped at 0.75", "base", Q3_F32, Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, 0, make_act, 7},
    {"tail of the sum missing, its last 8", "base", Q3_BF16, Q3_TAP_EXPERTS_DOWN_PROJ, 0, make_down,
     0},
    {"weight transposed", "base", Q3_BF16, Q3_TAP_EXPERTS_DOWN_PROJ, 0, make_down, 1},
    {"routing weights ignored, 1/k", "base", Q3_BF16, Q3_TAP_MLP, 0, make_mlp, 6},
    {"routing weights applied twice", "base", Q3_BF16, Q3_TAP_MLP, 0, make_mlp, 7},
    {"last slot missing", "base", Q3_BF16, Q3_TAP_MLP, 0, make_mlp, 8},
    {"expert 2 missing from the sum", "base", Q3_BF16, Q3_TAP_MLP, 0, make_mlp, 9},
    {"experts missing from the sum in 3 of 12 tokens (first: token 6, expert 2)", "base", Q3_BF16,
     Q3_TAP_MLP, 0, make_mlp, 10},
    {"top-k weights not renormalised", "base", Q3_BF16, Q3_TAP_MLP,
     HIDE(Q3_TAP_ROUTER_PROBS, Q3_TAP_EXPERTS_DOWN_PROJ), make_mlp, 0},
    {"top-k weights not renormalised", "base", Q3_F32, Q3_TAP_LAYER, INNER, make_layer, 0},
    {"weights paired in reverse", "base", Q3_F32, Q3_TAP_LAYER, INNER, make_layer, 2},
    {"a mistake in one place: all tokens with expert 4 wrong", "base", Q3_F32, Q3_TAP_LAYER, INNER,
     make_layer, 11},
};

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    (void)fixture_from_folder; /* of model.h */
    test_troubles(argv[1], troubles, sizeof troubles / sizeof troubles[0]);
    return t_done("diagnose_router");
}
