/* SPDX-License-Identifier: MIT */
/* mistakes.c - the list of known mistakes, in the order of the operators: of those that explain
 * a tensor equally well, the one that stands first. They are tried from the cheapest to the
 * dearest, so that a search that ends at its budget has tried as many as it could.
 *
 * MODEL.md section 9 tells of most. A row is an edit of the right graph: what reports call it,
 * whose operators, what is edited, by which value. A mistake that no edit makes, since it lies
 * inside an operator's rounding, has a change of its own in roundings.c. */
#include "judge/diagnosis.h"

#include "host/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Rows ==================================================================================== */

/* One value of a row's list: the mistake's value, another number for its text, and a name. */
typedef struct item {
    double value, other;
    const char *name;
    bool skipped;
} item;

/* The values of a row: its own, or those of a list (see below), which also says where the row
 * applies. */
typedef enum list {
    ITS_OWN,
    HALVES, OPERANDS, LOADED, CUTS, THETAS, EPS_DEFAULTS, EPS_VALUES, SCORE_CAPS, LOGIT_CAPS, TAILS,
    BLOCKS, SPLITS, ONE_OFF, POSITIONS_OFF, WINDOWS, GROUP_COUNTS, EXPERTS,
    LISTS, /* behind it: of one value */
    EMBEDDING_SCALE, EMBEDDING_SCALE_IN_D, START, START_IGNORED, ROPE_TYPE, YARN, DERIVED_FACTOR,
    HAS_EPS, NORM_ASKED, NO_SCALE, SCALE_TWICE, NARROW_SCALE, HAS_WINDOW, SEEN_WINDOW, OWN_WINDOW,
    NORMED, NOT_NORMED, ONE_KTH, HAS_FP8, HAS_BLOCKS, LAST_SLOT, FIRST_PLACE, FIRST_APART,
    LAST_APART, EXPERT_WIDTH
} list;

typedef enum spread {
    TOGETHER, /* at all its taps at once */
    PAIR,     /* at the queries' and the keys' tap, then at one of them */
    CACHE     /* at the scores and the values, then at one of them */
} spread;

/* Neighbours with one list are tried together, value by value. In text, %v stands for the value,
 * %o for the other number, %n for the name. */
typedef struct row {
    const char *text;
    uint64_t at;
    edit edits[EDITS];
    list over;
    double value, carry;
    bool allowed; /* by MODEL.md 12.2: explains a `rounding`, never a `differs` */
} row;

#define AT(tap) TAP_BIT(Q3_TAP_##tap)
#define EDIT(part, change) {part, change, Q3_TAP_COUNT}
#define EDIT_TAP(part, change, tap) {part, change, Q3_TAP_##tap}
#define ON(part, change) .edits = {EDIT(part, change)}
#define READS(part, tap) .edits = {EDIT_TAP(part, READ, tap)}
#define ROWS(rows) rows, sizeof rows / sizeof rows[0]

/* ==== Values ================================================================================== */

/* The most keys that a token of theirs sees, where probs are given. */
static size_t largest_window(const evidence *e)
{
    size_t most = 0, H = e->config->num_attention_heads, T = e->T;
    for (size_t r = e->first * H; e->id == Q3_TAP_PROBS && r < T * H; r++) {
        size_t first = 0, t = r / H;
        while (first < t && e->theirs[r * T + first] == 0.0f) first++;
        if (t + 1 - first > most) most = t + 1 - first;
    }
    return most;
}

/* The one value of a list, and whether there is one. */
static bool only_value(item *i, const evidence *e, list which)
{
    const q3_config *c = e->config;
    const q3_rope *rope = &c->rope;
    bool scaled = rope->type != Q3_ROPE_DEFAULT, first = e->id == Q3_TAP_POST_ATTENTION_INPUT;
    double hd = (double)c->head_dim, narrow = (double)(c->hidden_size / c->num_attention_heads);
    const char *apart = " (vLLM keeps it apart: record the sum)";
    switch ((int)which) {
    case EMBEDDING_SCALE: i->value = q3_sqrt((double)c->hidden_size); return true;
    case EMBEDDING_SCALE_IN_D:
        i->value = (double)q3_round(q3_sqrt((double)c->hidden_size), e->dtype);
        return true;
    case START_IGNORED: i->other = (double)e->start; return e->start > 0;
    case START: i->value = (double)e->start; return true;
    case ROPE_TYPE: i->name = q3_rope_name(rope->type); return scaled;
    case YARN: return rope->type == Q3_ROPE_YARN;
    case DERIVED_FACTOR:
        i->value = (double)c->max_position_embeddings, i->other = rope->factor;
        if (rope->original_max_position_embeddings > 0)
            i->value /= rope->original_max_position_embeddings;
        return scaled && i->value >= 1 && i->value < 1e4;
    case HAS_EPS: return (float)c->rms_norm_eps != 0.0f;
    case NORM_ASKED: return e->id == Q3_TAP_Q_NORM || e->id == Q3_TAP_K_NORM;
    case NO_SCALE: i->value = q3_sqrt(hd); return true;
    case SCALE_TWICE: i->value = 1 / q3_sqrt(hd); return true;
    case NARROW_SCALE: i->value = q3_sqrt(hd / narrow); return narrow > 0 && narrow != hd;
    case HAS_WINDOW: return c->sliding_window != 0;
    case SEEN_WINDOW: case OWN_WINDOW:
        i->value = (double)largest_window(e), i->other = (double)c->sliding_window;
        return (c->sliding_window == 0) == (which == OWN_WINDOW) && i->value > 0 &&
            i->value < (double)e->T;
    case NORMED: return c->norm_topk_prob;
    case HAS_FP8: return q3_format_of_weights(e) == QUANTISED_FP8;
    case HAS_BLOCKS: return q3_format_of_weights(e) == QUANTISED_BLOCKS;
    case NOT_NORMED: i->value = 1; return !c->norm_topk_prob;
    case ONE_KTH: i->value = 1 / (double)c->num_experts_per_tok; return true;
    case LAST_SLOT: i->value = (double)c->num_experts_per_tok - 1; return c->num_experts > 0;
    case FIRST_PLACE: i->name = first ? "" : ", after attention"; return true;
    case FIRST_APART: i->name = first ? apart : ", after attention"; return true;
    case LAST_APART: i->name = e->id == Q3_TAP_LAYER ? apart : ""; return true;
    case EXPERT_WIDTH:
        i->value = (double)c->moe_intermediate_size, i->other = (double)c->intermediate_size;
        return i->value < i->other && q3_in_dense_layer(e);
    default: return true;
    }
}

/* The n-th value of a list, from 0 on; false behind the last, or if its rows do not apply. */
static bool value_of(item *i, const evidence *e, list which, size_t n)
{
    static const double constants[LISTS][10] = { /* up to the first 0 */
        [HALVES] = {1 + FORMAT_BF16, 1 + FORMAT_F16}, /* formats: one more, so that none is 0 */
        [LOADED] = {1 + FORMAT_BF16, 1 + FORMAT_F16},
        [OPERANDS] = {1 + FORMAT_BF16, 1 + FORMAT_TF32, 1 + FORMAT_TF32_AWAY, 1 + FORMAT_TF32_CUT,
                      1 + FORMAT_F16},
        [CUTS] = {1 + FORMAT_BF16_CUT, 1 + FORMAT_TF32_CUT, 1 + FORMAT_F16_CUT},
        [THETAS] = {1e4, 1e6, 5e6, 1e7, 5e5, 1e5, 1e3},
        [EPS_DEFAULTS] = {1e-6, 1e-5}, /* likelier than none, where both fit */
        [EPS_VALUES] = {1e-8, 1e-12, 1e-4, 1e-3, 1e-7, 1e-10},
        [SCORE_CAPS] = {20, 30, 40, 50},
        [LOGIT_CAPS] = {10, 20, 30, 40, 50},
        [TAILS] = {8, 16, 32, 64},
        [BLOCKS] = {16, 32, 64},
        [SPLITS] = {2, 4, 8},
        [ONE_OFF] = {1, -1},
    };
    static const char *const names[][8] = { /* by format */
        [HALVES] = {[FORMAT_BF16] = "bfloat16", [FORMAT_F16] = "float16"},
        [OPERANDS] = {"bf16", "f16", "tf32", "tf32", "tf32"}, /* --accumulate's */
        [LOADED] = {"bf16", "f16"},
        [CUTS] = {[FORMAT_BF16_CUT] = "bfloat16", [FORMAT_F16_CUT] = "float16",
                  [FORMAT_TF32_CUT] = "tf32"},
    };
    const q3_config *c = e->config;
    double w = (double)c->sliding_window;
    const double windows[] = {w + 1, w - 1, 2 * w + 1, 2 * w};
    if (which > LISTS) return n == 0 && only_value(i, e, which);
    if (n < 10) i->value = constants[which][n];
    bool more = n < 10 && i->value != 0;
    switch ((int)which) {
    case LOADED:
        if (q3_format_of_weights(e) == NOT_QUANTISED) return false; /* fall through */
    case HALVES: case OPERANDS: case CUTS:
        if (more) i->name = names[which][(size_t)--i->value];
        i->skipped = which == CUTS && e->dtype != Q3_F32 &&
            i->value != (e->dtype == Q3_BF16 ? FORMAT_BF16_CUT : FORMAT_F16_CUT);
        return more;
    case THETAS:
        i->other = c->rope.rope_theta;
        i->skipped = i->value == i->other;
        return more;
    case EPS_DEFAULTS: case EPS_VALUES:
        i->other = c->rms_norm_eps;
        i->skipped = (float)i->value == (float)i->other;
        return more;
    case ONE_OFF: i->name = n == 0 ? "higher" : "lower"; return more;
    case POSITIONS_OFF:
        i->value = (double)e->start + (n == 0 ? 1 : -1);
        return n < (e->start > 0 ? 2 : 1);
    case WINDOWS:
        if (n < 4) i->value = windows[n], i->other = w, i->skipped = i->value == 0;
        return w > 0 && n < 4;
    case GROUP_COUNTS:
        i->value = (double)n + 3;
        i->skipped = c->num_experts % (n + 3) != 0;
        return n + 3 <= c->num_experts / 2 && n + 3 <= 64;
    case EXPERTS: i->value = (double)n; return n < c->num_experts && c->num_experts <= 256;
    default: return more;
    }
}

/* ==== Trying a row ============================================================================ */

/* text with its numbers and name filled in. */
static void fill(char *to, size_t size, const char *text, const item *i)
{
    size_t used = 0;
    for (; *text != 0 && used + 1 < size; text++) {
        if (*text != '%') {
            to[used++] = *text;
            continue;
        }
        text++;
        int n = *text == 'n' ? snprintf(to + used, size - used, "%s", i->name)
                             : snprintf(to + used, size - used, "%.9g",
                                        *text == 'v' ? i->value : i->other);
        used += (size_t)n < size - used ? (size_t)n : size - used - 1;
    }
    to[used] = 0;
}

/* Of all operators that a mistake reaches, up to the tensor in question: multiplications. */
static double cost_of(const evidence *e, const mistake *m)
{
    bool reached[Q3_TAP_COUNT] = {false};
    double work = 0;
    for (size_t i = 0; i <= (size_t)e->id; i++) {
        const q3_node *node = q3_graph_node(e->config, (q3_tap_id)i, e->layer);
        bool here = (m->at >> i & 1) != 0;
        if (node == NULL || (e->given[i] && i != (size_t)e->id)) continue;
        for (size_t k = 0; k < node->count; k++) here = here || reached[node->from[k]];
        reached[i] = here;
        if (here) work += q3_work_of(e, node);
    }
    return work;
}

/* A mistake of the list, to be tried; once it was: how well it explains. */
typedef struct planned {
    mistake m;
    char text[200], cause[160];
    double cost, distance;
    strength strength;
} planned;

struct plan {
    planned *all;
    size_t count, room;
};

/* place: how long the part of text is that says where. */
static void plan_at(diagnosis *d, const row *r, uint64_t at, double value, const char *text,
                    size_t place, const char *behind)
{
    struct plan *plan = d->plan;
    if (plan->count == plan->room) {
        size_t room = plan->room + 512;
        planned *all = realloc(plan->all, room * sizeof *all);
        d->no_memory = d->no_memory || all == NULL;
        if (all == NULL) return;
        plan->all = all;
        plan->room = room;
    }
    planned *p = &plan->all[plan->count++];
    *p = (planned){.m = {.at = at, .value = value, .carry = r->carry, .allowed = r->allowed}};
    memcpy(p->m.edits, r->edits, sizeof p->m.edits);
    snprintf(p->text, sizeof p->text, "%s%s", text, behind);
    snprintf(p->cause, sizeof p->cause, "%s", text + place);
    p->cost = cost_of(d->e, &p->m);
}

/* The row with one value; where: what its text begins with. */
static void plan_item(diagnosis *d, const row *r, uint64_t at, spread as, const item *i,
                         const char *where)
{
    const evidence *e = d->e;
    uint64_t q = at & (AT(Q_NORM) | AT(Q_ROPE)), k = at & (AT(K_NORM) | AT(K_ROPE));
    bool first = e->id <= Q3_TAP_PROBS, known = e->given[Q3_TAP_SCORES] || e->given[Q3_TAP_PROBS];
    char text[160];
    size_t used = (size_t)snprintf(text, 64, "%s", where);
    fill(text + used, sizeof text - used, r->text, i);
    if (as == CACHE) {
        if (!first && !known) plan_at(d, r, at, i->value, text, used, "");
        plan_at(d, r, AT(SCORES), i->value, text, used, first ? "" : ", keys only");
        plan_at(d, r, AT(O_PROJ_INPUT), i->value, text, used, ", values only");
        return;
    }
    plan_at(d, r, at, i->value, text, used, "");
    if (as != PAIR || q == 0 || e->id <= Q3_TAP_K_ROPE) return;
    plan_at(d, r, k, i->value, text, used, ", keys only");
    plan_at(d, r, q, i->value, text, used, ", queries only");
}

/* All rows, at those of their taps that are in `within`. */
static void plan_rows(diagnosis *d, const row *rows, size_t count, uint64_t within, spread as,
                         const char *where)
{
    for (size_t first = 0, end; first < count; first = end) {
        list values = rows[first].over;
        bool more = true;
        for (end = first + 1; values != ITS_OWN && end < count && rows[end].over == values;) end++;
        for (size_t n = 0; more; n++)
            for (size_t r = first; more && r < end; r++) {
                item i = {.value = rows[r].value};
                more = values == ITS_OWN ? n == 0 : value_of(&i, d->e, values, n);
                if (more && !i.skipped && (rows[r].at & within) != 0)
                    plan_item(d, &rows[r], rows[r].at & within, as, &i, where);
            }
    }
}

/* ==== The list ================================================================================ */

static const row embedding[] = {
    {"embedding scaled by sqrt(hidden_size) in the run's dtype", AT(EMBED_TOKENS),
     ON(RESULT, TIMES), .over = EMBEDDING_SCALE_IN_D},
    {"embedding scaled by sqrt(hidden_size)", AT(EMBED_TOKENS), ON(RESULT, TIMES),
     .over = EMBEDDING_SCALE},
    {"embedding row of id + 1", AT(EMBED_TOKENS), ON(ARG_1, SHIFTED), .value = 1},
    {"embedding row of id - 1", AT(EMBED_TOKENS), ON(ARG_1, SHIFTED), .value = -1},
};

#define TABLES (AT(COS) | AT(SIN))
static const row tables[] = {
    {"position off by one (the first is %v)", TABLES, ON(PARAMETER, FIRST_POSITION),
     .over = POSITIONS_OFF},
    {"positions from 0 though the run starts at %o", TABLES, ON(PARAMETER, FIRST_POSITION),
     .over = START_IGNORED},
    {"position %v for all tokens", TABLES, ON(PARAMETER, ONE_POSITION), .over = START},
    {"position 0 for all tokens", TABLES, ON(PARAMETER, ONE_POSITION)},
    {"RoPE scaling (%n) ignored", TABLES, ON(PARAMETER, UNSCALED), .over = ROPE_TYPE},
    {"YaRN's attention factor missing", TABLES, ON(PARAMETER, NO_ATTENTION_FACTOR), .over = YARN},
    {"YaRN's ramp inverted (the slow frequencies kept, the fast ones divided)", TABLES,
     ON(PARAMETER, RAMP_INVERTED), .over = YARN},
    {"YaRN's ramp inverted and its attention factor missing", TABLES, ON(PARAMETER, RAMP_INVERTED),
     .over = YARN, .value = 1},
    {"RoPE scaling factor %v instead of %o (of max_position_embeddings)", TABLES,
     ON(PARAMETER, FACTOR), .over = DERIVED_FACTOR},
    {"rope_theta %v instead of %o", TABLES, ON(PARAMETER, THETA), .over = THETAS},
    {"inverse frequencies rounded to %n", TABLES, ON(PARAMETER, FREQUENCIES), .over = HALVES},
    {"positions rounded to %n", TABLES, ON(PARAMETER, POSITIONS), .over = HALVES},
    {"cos and sin rounded to %n", TABLES, ON(RESULT, ROUNDED), .over = HALVES},
    {"cos and sin swapped", TABLES, ON(WEIGHT, PARTNERS)},
};

#define ROPE (AT(Q_ROPE) | AT(K_ROPE))
static const row ropes[] = {
    {"RoPE interleaved, pairs (2i, 2i+1)", ROPE,
     .edits = {EDIT(ARG_1, FROM_PAIRS), EDIT(RESULT, TO_PAIRS)}},
    {"RoPE interleaved, pairs (2i, 2i+1) written to halves", ROPE, ON(ARG_1, FROM_PAIRS)},
    {"RoPE applied twice", ROPE, ON(RESULT, AGAIN)},
    {"RoPE missing", ROPE, ON(RESULT, SKIPPED)},
    {"RoPE on the first half of the dimensions only", ROPE, ON(RESULT, UPPER_KEPT)},
    {"partial RoPE, half of head_dim", ROPE, ON(PARAMETER, HALF_WIDTH)},
    {"RoPE in the other direction (sign of sin)", ROPE, ON(ARG_3, TIMES), .value = -1},
    {"QK-norm after RoPE", ROPE,
     .edits = {EDIT_TAP(ARG_1, READ_PAST, Q_PROJ), EDIT_TAP(RESULT, THROUGH, Q_NORM)}},
    {"RoPE with one rounding", ROPE, ON(ROUNDING, ONCE), .allowed = true},
    {"RoPE with a fused multiply-add (the product with cos not rounded)", ROPE,
     ON(ROUNDING, COS_FUSED), .allowed = true},
    {"RoPE with a fused multiply-add (the product with sin not rounded)", ROPE,
     ON(ROUNDING, SIN_FUSED), .allowed = true},
};

/* At each norm in turn; those of queries and keys count as one. */
#define HEAD_NORMS (AT(Q_NORM) | AT(K_NORM))
#define NORMS (AT(INPUT_LAYERNORM) | HEAD_NORMS | AT(POST_ATTENTION_LAYERNORM) | AT(NORM))
static const row norms[] = {
    {"eps added outside the root", NORMS, ON(ROUNDING, EPS_OUTSIDE)},
    {"norm weight + 1", NORMS, ON(WEIGHT, PLUS), .value = 1},
    {"norm weight missing", NORMS, ON(WEIGHT, FILL), .value = 1},
    {"LayerNorm (mean subtracted)", NORMS, ON(ROUNDING, CENTRED)},
    {"sum instead of mean in the norm", NORMS, ON(ROUNDING, SUM_OF_SQUARES)},
    {"norm missing", NORMS, ON(RESULT, SKIPPED)},
    {"norm applied twice", NORMS, ON(RESULT, AGAIN)},
    {"QK-norm over all heads together", HEAD_NORMS, ON(PARAMETER, ALL_HEADS)},
    {"QK-norm after RoPE", HEAD_NORMS, .edits = {EDIT_TAP(ARG_1, THROUGH, Q_ROPE)}},
    {"norm weight multiplied before the cast", NORMS, ON(ROUNDING, CAST_LAST), .allowed = true},
    {"variance rounded to %n", NORMS, ON(ROUNDING, VARIANCE), .over = HALVES},
    {"variance computed in %n, each square and the mean rounded", NORMS, ON(ROUNDING, SQUARES),
     .over = HALVES},
    {"norm computed in %n, each step rounded", NORMS, ON(ROUNDING, LOW_NORM), .over = HALVES},
    {"norm computed in %n, each step rounded", NORMS, ON(ROUNDING, LOW_ROOT), .over = HALVES},
    {"norm of the unrounded residual sum", AT(POST_ATTENTION_LAYERNORM),
     ON(ROUNDING, UNROUNDED_SUM), .allowed = true},
    {"RoPE applied to it already (a hook must copy what is overwritten in place)", HEAD_NORMS,
     .edits = {EDIT_TAP(RESULT, THROUGH, Q_ROPE)}, .over = NORM_ASKED},
};
static const row norm_parameters[] = {
    {"norm with post_attention_layernorm's weight", AT(INPUT_LAYERNORM), ON(WEIGHT, PARTNERS)},
    {"norm with input_layernorm's weight", AT(POST_ATTENTION_LAYERNORM), ON(WEIGHT, PARTNERS)},
    {"norm with the last layer's post_attention_layernorm weight", AT(NORM), ON(WEIGHT, PARTNERS)},
    {"weights of q_norm and k_norm swapped", HEAD_NORMS, ON(WEIGHT, PARTNERS)},
    {"eps %v instead of %o", NORMS, ON(PARAMETER, EPS), .over = EPS_DEFAULTS},
    {"eps missing", NORMS, ON(PARAMETER, EPS), .over = HAS_EPS},
    {"eps %v instead of %o", NORMS, ON(PARAMETER, EPS), .over = EPS_VALUES},
};

static const row scores[] = {
    {"attention scale missing", AT(SCORES), ON(ROUNDING, SCALE), .over = NO_SCALE},
    {"attention scale applied twice", AT(SCORES), ON(ROUNDING, SCALE), .over = SCALE_TWICE},
    {"attention scale applied twice", AT(SCORES), ON(RESULT, TIMES), .over = SCALE_TWICE},
    {"attention scale of head_dim = hidden_size / heads", AT(SCORES), ON(ROUNDING, SCALE),
     .over = NARROW_SCALE},
    {"queries scaled and rounded before the product", AT(SCORES), ON(ROUNDING, QUERY_FIRST)},
    {"scores softcapped, %v tanh(s / %v)", AT(SCORES), ON(RESULT, CAPPED), .over = SCORE_CAPS},
    {"keys not rotated in the cache", AT(SCORES), READS(ARG_2, K_NORM)},
    {"scores rounded once, after the scale", AT(SCORES), ON(ROUNDING, ONCE), .allowed = true},
};

#define CACHES (AT(SCORES) | AT(O_PROJ_INPUT))
static const row caches[] = {
    {"KV head mapping tiled (h mod K)", CACHES, ON(ARG_2, HEADS_TILED)},
    {"KV head mapping h / K (wrong divisor)", CACHES, ON(ARG_2, HEADS_DIVIDED)},
    {"stale cache, its last row is the previous token's", CACHES, ON(ARG_2, STALE)},
    {"stale cache, read one row off", CACHES, ON(ARG_2, ROW_BEFORE)},
    {"KV cache rounded to %n, declare --kv %n", CACHES, ON(ARG_2, ROUNDED), .over = HALVES},
    {"KV cache rounded to fp8", CACHES, ON(ARG_2, ROUNDED), .value = FORMAT_FP8},
};

static const row attentions[] = {
    {"values taken from the keys", AT(O_PROJ_INPUT), READS(ARG_2, K_ROPE)},
    {"heads joined as [hd,H], transposed", AT(O_PROJ_INPUT), ON(RESULT, TRANSPOSED)},
    {"mask lets each token see one future token", AT(PROBS), ON(PARAMETER, ONE_MORE_KEY)},
    {"mask hides the token itself", AT(PROBS), ON(PARAMETER, ONE_KEY_LESS)},
    {"causal mask missing", AT(PROBS), ON(PARAMETER, ALL_KEYS)},
    {"softmax with a sink, 1 added to the denominator", AT(PROBS), ON(ROUNDING, SINK)},
    {"softmax in base 2", AT(PROBS), ON(ROUNDING, BASE_2)},
    {"softmax in %n throughout", AT(PROBS), ON(ROUNDING, LOW_SOFTMAX), .over = HALVES},
    {"softmax in %n without its maximum subtracted", AT(PROBS), ON(ROUNDING, NO_MAXIMUM),
     .over = HALVES},
    {"window ignored", AT(PROBS), ON(PARAMETER, WINDOW), .over = HAS_WINDOW},
    {"window of %v keys instead of %o", AT(PROBS), ON(PARAMETER, WINDOW), .over = WINDOWS},
    {"window of %v keys instead of %o", AT(PROBS), ON(PARAMETER, WINDOW), .over = SEEN_WINDOW},
    {"window of %v keys though the config has none", AT(PROBS), ON(PARAMETER, WINDOW),
     .over = OWN_WINDOW},
};

static const row routers[] = {
    {"softmax applied twice", AT(ROUTER_PROBS), ON(RESULT, AGAIN)},
    {"sigmoid instead of softmax in the router", AT(ROUTER_PROBS), ON(PARAMETER, SIGMOID)},
    {"router probabilities rounded to %n", AT(ROUTER_PROBS), ON(RESULT, ROUNDED), .over = HALVES},
    {"router softmax computed in %n throughout", AT(ROUTER_PROBS), ON(ROUNDING, LOW_SOFTMAX),
     .over = HALVES},
    {"router probabilities as exp(logit - logsumexp) in %n", AT(ROUTER_PROBS),
     ON(ROUNDING, LOGSUMEXP), .over = HALVES},
    {"router probabilities as exp(logit - logsumexp) in %n", AT(ROUTER_PROBS),
     ON(ROUNDING, LOGSUMEXP_ONCE), .over = HALVES},
    {"the smallest chosen (ascending order)", AT(TOPK_INDICES), ON(ARG_1, TIMES), .value = -1},
    {"negative logits count as 0 in the choice", AT(TOPK_INDICES),
     .edits = {EDIT_TAP(ARG_1, READ, GATE), EDIT(ARG_1, AT_LEAST_0)}},
    {"expert ids one %n", AT(TOPK_INDICES), ON(RESULT, SHIFTED), .over = ONE_OFF},
    {"grouped selection, the best 2 of %v groups", AT(TOPK_INDICES), ON(ARG_1, BEST_GROUPS),
     .over = GROUP_COUNTS},
    {"top-k weights not renormalised", AT(TOPK_WEIGHTS), ON(PARAMETER, RENORMALISED),
     .over = NORMED},
    {"top-k weights renormalised though norm_topk_prob is false", AT(TOPK_WEIGHTS),
     ON(PARAMETER, RENORMALISED), .over = NOT_NORMED},
    {"raw router logits as weights", AT(TOPK_WEIGHTS),
     .edits = {EDIT_TAP(ARG_1, READ, GATE), EDIT(PARAMETER, RENORMALISED)}},
    {"sigmoid of the logits as weights", AT(TOPK_WEIGHTS),
     .edits = {EDIT_TAP(ARG_1, READ, GATE), EDIT(ARG_1, SIGMOID)}},
    {"weights paired in the order of the ids", AT(TOPK_WEIGHTS), ON(RESULT, BY_ID)},
    {"weights paired in the order of the ids", AT(MLP), ON(ARG_2, BY_ID)},
    {"ids sorted, their weights left in the order of rank", AT(TOPK_WEIGHTS), ON(RESULT, BY_RANK)},
    {"ids sorted, their weights left in the order of rank", AT(MLP), ON(ARG_2, BY_RANK)},
    {"weights paired in reverse order of rank", AT(TOPK_WEIGHTS), ON(RESULT, REVERSED)},
    {"weights paired in reverse order of rank", AT(MLP), ON(ARG_2, REVERSED)},
    {"last slot has the weight of the slot before", AT(TOPK_WEIGHTS), ON(RESULT, LAST_REPEATED)},
    {"k - 1 experts, the last slot's weight 0", AT(TOPK_WEIGHTS), ON(ARG_1, NO_LAST_CHOSEN)},
    {"routing weights ignored, 1/k each", AT(TOPK_WEIGHTS), ON(RESULT, FILL), .over = ONE_KTH},
    {"routing weights ignored, 1/k each", AT(MLP), ON(ARG_2, FILL), .over = ONE_KTH},
    {"routing weights ignored, 1 each", AT(TOPK_WEIGHTS), ON(RESULT, FILL), .value = 1},
    {"routing weights ignored, 1 each", AT(MLP), ON(ARG_2, FILL), .value = 1},
    {"routing weights applied twice", AT(TOPK_WEIGHTS), ON(RESULT, SQUARED)},
    {"routing weights applied twice", AT(MLP), ON(ARG_2, SQUARED)},
    {"weights rounded before they are renormalised", AT(TOPK_WEIGHTS), ON(ROUNDING, ROUNDED_FIRST)},
    {"weights renormalised by a sum that is rounded after each slot", AT(TOPK_WEIGHTS),
     ON(ROUNDING, SLOTS_SUMMED)},
    {"routing weights not rounded", AT(TOPK_WEIGHTS), ON(RESULT, UNROUNDED), .allowed = true},
    {"last slot missing from the sum", AT(MLP), ON(ARG_2, NO_SLOT), .over = LAST_SLOT},
    {"expert %v missing from the sum", AT(MLP), ON(ARG_2, NO_EXPERT), .over = EXPERTS},
};

#define ACT (AT(EXPERTS_ACT_FN) | AT(DENSE_ACT_FN))
#define PRODUCT (AT(EXPERTS_DOWN_PROJ_INPUT) | AT(DENSE_DOWN_PROJ_INPUT))
static const row activations[] = {
    {"GELU instead of SiLU", ACT, ON(PARAMETER, GELU)},
    {"tanh GELU instead of SiLU", ACT, ON(PARAMETER, GELU_TANH)},
    {"ReLU instead of SiLU", ACT, ON(PARAMETER, RELU)},
    {"hard swish instead of SiLU", ACT, ON(PARAMETER, HARD_SWISH)},
    {"x sigmoid(1.702 x) instead of SiLU (alpha 1.702)", ACT, ON(PARAMETER, ALPHA_SIGMOID)},
    {"gate clamped at 7", ACT, ON(ARG_1, AT_MOST), .value = 7},
    {"sigmoid rounded before the product", ACT, ON(ROUNDING, SIGMOID_ROUNDED)},
    {"up + 1", PRODUCT, ON(ARG_2, PLUS), .value = 1},
    {"up clamped at 7", PRODUCT, ON(ARG_2, WITHIN), .value = 7},
    {"silu(gate) up with one rounding", PRODUCT,
     .edits = {EDIT_TAP(ARG_1, READ_PAST, EXPERTS_GATE_PROJ), EDIT(ROUNDING, ONCE)},
     .allowed = true},
};

#define FIRST_SUM AT(POST_ATTENTION_INPUT)
static const row sums[] = {
    {"residual missing%n", FIRST_SUM, ON(ARG_1, FILL), .over = FIRST_APART},
    {"residual missing%n", AT(LAYER), ON(ARG_1, FILL), .over = LAST_APART},
    {"branch missing, the residual alone%n", FIRST_SUM, ON(ARG_2, FILL), .over = FIRST_PLACE},
    {"branch missing, the residual alone", AT(LAYER), ON(ARG_2, FILL)},
    {"residual taken from the normed input%n", FIRST_SUM, READS(ARG_1, INPUT_LAYERNORM),
     .over = FIRST_PLACE},
    {"residual taken from the normed input", AT(LAYER), READS(ARG_1, POST_ATTENTION_LAYERNORM)},
    {"residual doubled%n", FIRST_SUM, ON(ARG_1, TIMES), .over = FIRST_PLACE, .value = 2},
    {"residual doubled", AT(LAYER), ON(ARG_1, TIMES), .value = 2},
    {"residual taken from before attention", AT(LAYER), .edits = {{ARG_1, READ, STREAM}}},
    {"residual sum not rounded%n", FIRST_SUM, ON(RESULT, UNROUNDED), .over = FIRST_PLACE,
     .allowed = true},
    {"residual sum not rounded", AT(LAYER), ON(RESULT, UNROUNDED), .allowed = true},
};

#define EXPERTS_IN (AT(EXPERTS_GATE_PROJ) | AT(EXPERTS_UP_PROJ))
#define GATE_UP (EXPERTS_IN | AT(DENSE_GATE_PROJ) | AT(DENSE_UP_PROJ))
static const row projections[] = {
    {"dense MLP as wide as an expert, %v instead of %o", AT(MLP), ON(ARG_1, FIRST_TERMS),
     .over = EXPERT_WIDTH},
    {"weights of k_proj and v_proj swapped", AT(K_PROJ) | AT(V_PROJ), ON(WEIGHT, PARTNERS)},
    {"gate and up swapped", GATE_UP, ON(WEIGHT, PARTNERS)},
    {"gate and up interleaved row by row", GATE_UP, ON(WEIGHT, INTERLEAVED)},
    {"experts computed in %n throughout", EXPERTS_IN | AT(EXPERTS_ACT_FN) |
     AT(EXPERTS_DOWN_PROJ_INPUT) | AT(EXPERTS_DOWN_PROJ),
     .edits = {EDIT(ARG_1, ROUNDED), EDIT(WEIGHT, ROUNDED), EDIT(RESULT, ROUNDED)},
     .over = HALVES},
    {"routing weight applied before the expert", EXPERTS_IN, ON(ARG_1, WEIGHTED)},
    {"router reads the residual stream before the norm", AT(GATE),
     READS(ARG_1, POST_ATTENTION_INPUT)},
    {"router logits are probabilities (softmax)", AT(GATE),
     .edits = {EDIT_TAP(RESULT, THROUGH, ROUTER_PROBS)}},
    {"lm_head tied to the embedding", AT(LM_HEAD), ON(WEIGHT, PARTNERS)},
    /* Three roundings more than the operator's: a step in the first may become two. */
    {"logits softcapped, %v tanh(x / %v)", AT(LM_HEAD), ON(RESULT, CAPPED), .over = LOGIT_CAPS,
     .carry = 2},
};

#define EVERY ~(uint64_t)0

/* Of a linear map whose weight is quantised: at each in turn, then at all. */
static const row quantised_maps[] = {
    {"quantised weights rounded to %n as they are loaded, declare --accumulate %n", EVERY,
     ON(WEIGHT, ROUNDED), .over = LOADED},
    {"activations quantised to fp8, declare --accumulate fp8", EVERY, ON(ARG_1, GROUPED_FP8),
     .over = HAS_FP8},
    {"activations quantised to fp8 with powers of two as scales, declare --accumulate fp8", EVERY,
     ON(ARG_1, GROUPED_FP8_POWERS), .over = HAS_FP8},
    {"activations quantised to 8 bits, declare --accumulate q8", EVERY, ON(ARG_1, GROUPED_Q8),
     .over = HAS_BLOCKS},
    {"activations quantised to 8 bits in blocks of 32, declare --accumulate q8", EVERY,
     ON(ARG_1, GROUPED_Q8), .over = HAS_BLOCKS, .value = 32},
};

/* Of any linear map: at each in turn, then at all of the experts'. */
static const row maps[] = {
    {"weight transposed", EVERY, ON(WEIGHT, TRANSPOSED)},
    {"bias missing", EVERY, ON(BIAS, MISSING)},
    {"bias added twice", EVERY, ON(BIAS, TIMES), .value = 2},
    {"bias added after the rounding", EVERY, ON(ROUNDING, BIAS_LATER)},
    {"bias in another order, [heads,head_dim] read as [head_dim,heads]", EVERY,
     ON(BIAS, BY_CHANNEL)},
    {"bias in another order, [head_dim,heads] read as [heads,head_dim]", EVERY, ON(BIAS, BY_HEAD)},
    {"tail of the sum missing, its last %v terms", EVERY, ON(ARG_1, NO_TAIL), .over = TAILS},
    {"tail of the sum missing, what is left of blocks of %v terms", EVERY, ON(ARG_1, NO_TAIL_BLOCK),
     .over = BLOCKS},
    {"operands rounded to %n, declare --accumulate %n", EVERY,
     .edits = {EDIT(ARG_1, ROUNDED), EDIT(WEIGHT, ROUNDED)}, .over = OPERANDS},
    {"operands rounded to fp8", EVERY, .edits = {EDIT(ARG_1, ROUNDED), EDIT(WEIGHT, ROUNDED)},
     .value = FORMAT_FP8},
    {"operands and result rounded to %n", EVERY,
     .edits = {EDIT(ARG_1, ROUNDED), EDIT(WEIGHT, ROUNDED), EDIT(ROUNDING, CAST)}, .over = HALVES},
    {"sums accumulated in %n", EVERY, ON(ROUNDING, LOW_SUM), .over = HALVES},
    {"sum in %v parts, each rounded (split accumulation)", EVERY, ON(ROUNDING, PARTS),
     .over = SPLITS},
    {"weights quantised to fp8", EVERY, ON(WEIGHT, FP8_SCALED)},
    {"weights quantised to int8", EVERY, ON(WEIGHT, INT8_SCALED)},
    {"result not rounded", EVERY, ON(RESULT, UNROUNDED), .allowed = true},
};

/* Of any tensor but ids: at each operator in turn, then at several. */
#define VALUES (EVERY & ~AT(TOPK_INDICES))
static const row stores[] = {
    {"stored in %n by truncation instead of rounding", VALUES, ON(RESULT, ROUNDED), .over = CUTS},
};
static const row fused_stores[] = {
    {"stored in %n by truncation instead of rounding", VALUES, ON(RESULT, STORED), .over = CUTS},
};

/* ==== All of them ============================================================================= */

/* "" for the tensor in question, else its operator's name and a colon. */
static const char *operator_name(char name[Q3_TAP_NAME_SIZE + 4], const evidence *e, q3_tap_id id)
{
    name[0] = 0;
    if (id == e->id) return name;
    snprintf(name, Q3_TAP_NAME_SIZE + 4, "%s", q3_tap_info(id)->name);
    char *end = strrchr(name, '.');
    if (end == NULL) end = name + strlen(name);
    memcpy(end, ": ", 3);
    return name;
}

static void plan_norms(diagnosis *d)
{
    static const q3_tap_id ids[] = {Q3_TAP_INPUT_LAYERNORM, Q3_TAP_Q_NORM,
                                    Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_NORM};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        char name[Q3_TAP_NAME_SIZE + 4];
        bool heads = ids[i] == Q3_TAP_Q_NORM;
        uint64_t at = heads ? HEAD_NORMS : TAP_BIT(ids[i]);
        const char *where = operator_name(name, d->e, ids[i]);
        if (heads) where = d->e->id > Q3_TAP_K_NORM ? "QK-norm: " : "";
        plan_rows(d, ROWS(norms), at, PAIR, where);
        plan_rows(d, ROWS(norm_parameters), at, TOGETHER, where);
    }
}

static bool is_map(const q3_node *node)
{
    return node != NULL && (node->op == Q3_OP_LINEAR || node->op == Q3_OP_EXPERT_LINEAR);
}

static void plan_quantised_maps(diagnosis *d)
{
    uint64_t all = 0;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        char name[Q3_TAP_NAME_SIZE + 4];
        if (!is_map(q3_graph_node(d->e->config, (q3_tap_id)i, d->e->layer))) continue;
        all |= TAP_BIT(i);
        plan_rows(d, ROWS(quantised_maps), TAP_BIT(i), TOGETHER,
                  operator_name(name, d->e, (q3_tap_id)i));
    }
    plan_rows(d, ROWS(quantised_maps), all, TOGETHER, "every linear map: ");
}

static void plan_maps(diagnosis *d)
{
    uint64_t experts = 0;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        char name[Q3_TAP_NAME_SIZE + 4];
        const q3_node *node = q3_graph_node(d->e->config, (q3_tap_id)i, d->e->layer);
        if (!is_map(node)) continue;
        if (node->op == Q3_OP_EXPERT_LINEAR) experts |= TAP_BIT(i);
        plan_rows(d, ROWS(maps), TAP_BIT(i), TOGETHER, operator_name(name, d->e, (q3_tap_id)i));
    }
    if (d->e->id > Q3_TAP_EXPERTS_DOWN_PROJ && d->e->id < Q3_TAP_NORM)
        plan_rows(d, ROWS(maps), experts, TOGETHER, "experts: ");
}

/* At every operator in turn, then as a library's conversion would have it: wherever it is used. */
static void plan_stores(diagnosis *d)
{
#define ATTENTION (AT(SCORES) | AT(PROBS) | AT(O_PROJ_INPUT))
#define EXPERTS_ALL (EXPERTS_IN | ACT | PRODUCT | AT(EXPERTS_DOWN_PROJ) | AT(MLP))
#define KERNELS (ROPE | AT(O_PROJ_INPUT) | PRODUCT | AT(MLP)) /* what they write to memory */
    static const struct { const char *name; uint64_t at; } sets[] = {
        {"RoPE: ", ROPE}, {"attention: ", ATTENTION}, {"RoPE and attention: ", ROPE | ATTENTION},
        {"silu(gate) up: ", ACT | PRODUCT}, {"experts: ", EXPERTS_ALL},
        {"RoPE, attention and experts: ", ROPE | ATTENTION | EXPERTS_ALL},
    };
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        char name[Q3_TAP_NAME_SIZE + 4];
        if ((VALUES >> i & 1) && q3_graph_node(d->e->config, (q3_tap_id)i, d->e->layer) != NULL)
            plan_rows(d, ROWS(stores), TAP_BIT(i), TOGETHER,
                         operator_name(name, d->e, (q3_tap_id)i));
    }
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        plan_rows(d, ROWS(stores), sets[i].at & KERNELS, TOGETHER, sets[i].name);
        plan_rows(d, ROWS(fused_stores), sets[i].at, TOGETHER, sets[i].name);
    }
}

static void plan_all(diagnosis *d)
{
    plan_rows(d, ROWS(embedding), EVERY, TOGETHER, "");
    plan_rows(d, ROWS(tables), EVERY, TOGETHER, "");
    plan_rows(d, ROWS(ropes), EVERY, PAIR, "");
    plan_norms(d);
    plan_rows(d, ROWS(scores), EVERY, TOGETHER, "");
    plan_rows(d, ROWS(caches), EVERY, CACHE, "");
    plan_rows(d, ROWS(attentions), EVERY, TOGETHER, "");
    plan_rows(d, ROWS(routers), EVERY, TOGETHER, "");
    plan_rows(d, ROWS(activations), EVERY, TOGETHER, "");
    plan_rows(d, ROWS(sums), EVERY, TOGETHER, "");
    plan_quantised_maps(d);
    plan_rows(d, ROWS(projections), EVERY, TOGETHER, "");
    plan_maps(d);
    plan_stores(d);
}

static int by_cost(const void *a, const void *b)
{
    const planned *x = *(const planned *const *)a, *y = *(const planned *const *)b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Tries one by itself, whatever others explain; once one explains all, one in part is nothing. */
static void try_one(diagnosis *d, planned *p, bool *full)
{
    d->strength = *full ? FULL : NOTHING;
    d->distance = 1e300;
    d->by_mistake = false;
    p->m.cause = p->cause;
    q3_attempt(d, &p->m, p->text);
    if (!d->by_mistake) return;
    p->strength = d->strength;
    p->distance = d->distance;
    *full = *full || d->strength == FULL;
}

/* Of those that explain something, as q3_weigh would have it in the order of the list. */
static planned *choose(const struct plan *plan)
{
    planned *best = NULL;
    for (size_t i = 0; i < plan->count; i++) {
        planned *p = &plan->all[i];
        bool closer = best != NULL && p->strength == best->strength &&
                      p->distance < best->distance / 2;
        if (p->strength > (best != NULL ? best->strength : NOTHING) || closer) best = p;
    }
    return best;
}

void q3_try_mistakes(diagnosis *d)
{
    struct plan plan = {NULL, 0, 0};
    bool full = false;
    d->plan = &plan;
    plan_all(d);
    planned **order = malloc((plan.count + 1) * sizeof(planned *));
    d->no_memory = d->no_memory || order == NULL;
    for (size_t i = 0; order != NULL && i < plan.count; i++) order[i] = &plan.all[i];
    if (order != NULL) qsort(order, plan.count, sizeof *order, by_cost);
    for (size_t i = 0; order != NULL && i < plan.count; i++) try_one(d, order[i], &full);
    planned *best = choose(&plan);
    d->strength = NOTHING;
    d->by_mistake = false;
    d->text[0] = d->cause[0] = 0;
    if (best != NULL) q3_attempt_again(d, &best->m, best->text);
    d->plan = NULL;
    free(plan.all);
    free(order);
}
