/* SPDX-License-Identifier: MIT */
/* locate.c - what can be said of a difference without knowing the operator: a factor, channels
 * that have another's values, tokens in another order; else at least where it is. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where theirs is wrong, and a tensor to build explanations in. */
typedef struct shape {
    const evidence *e;
    const float *base;   /* ours, not rounded where that is known */
    size_t N, heads;     /* channels of a row's heads, slots or of itself; heads: row / N */
    size_t experts;      /* 0: the tensor has none */
    size_t *tokens, *channels, *parts, *by_expert; /* elements that are wrong */
    size_t first_token, last_token, token_count, first_channel, last_channel, channel_count;
    size_t first_part, part_count, first_expert, expert_count, judged_tokens;
    float *y;            /* [T,row] */
} shape;

static size_t expert_of(const shape *s, size_t t, size_t i)
{
    return (size_t)s->e->tap[Q3_TAP_TOPK_INDICES][t * s->heads + i / s->N];
}

static void range(const size_t *wrong, size_t count, size_t *first, size_t *last, size_t *number)
{
    *number = 0;
    for (size_t i = 0; i < count; i++) {
        if (wrong[i] == 0) continue;
        if ((*number)++ == 0) *first = i;
        *last = i;
    }
}

/* Every rounding counts where a rounding is looked for: then the channel with most of them is
 * the wrong one. */
static void most_only(size_t *wrong, size_t count)
{
    size_t best = 0;
    for (size_t i = 0; i < count; i++)
        if (wrong[i] > wrong[best]) best = i;
    for (size_t i = 0; i < count; i++)
        if (i != best) wrong[i] = 0;
}

static void look(shape *s, bool rounding)
{
    const evidence *e = s->e;
    size_t last;
    for (size_t t = e->first; t < e->T; t++) {
        size_t judged = 0;
        for (size_t i = 0; i < e->row; i++) {
            size_t at = t * e->row + i;
            judged += e->bound[at] >= 0;
            bool differs = e->bound[at] >= 0 && e->ours[at] != e->theirs[at];
            bool wrong = rounding ? differs : !q3_agrees(e, at, e->ours[at]);
            if (!wrong) continue;
            s->tokens[t]++;
            s->channels[i % s->N]++;
            s->parts[i / s->N]++;
            if (s->experts > 0) s->by_expert[expert_of(s, t, i)]++;
        }
        s->judged_tokens += judged > 0;
    }
    if (rounding) most_only(s->channels, s->N);
    range(s->tokens, e->T, &s->first_token, &s->last_token, &s->token_count);
    range(s->channels, s->N, &s->first_channel, &s->last_channel, &s->channel_count);
    range(s->parts, s->heads, &s->first_part, &last, &s->part_count);
    range(s->by_expert, s->experts, &s->first_expert, &last, &s->expert_count);
}

static q3_dtype rounded_to(const evidence *e)
{
    return q3_tap_dtype(e->id, e->dtype) == Q3_F32 ? Q3_F32 : e->dtype;
}

/* ==== Factors ================================================================================= */

/* Elements of one region: wrong channels of wrong tokens, and of one expert if only one is
 * wrong. */
static bool inside(const shape *s, size_t t, size_t i, bool one_expert)
{
    size_t c = i % s->N;
    if (t < s->first_token || t > s->last_token || c < s->first_channel || c > s->last_channel)
        return false;
    return !one_expert || expert_of(s, t, i) == s->first_expert;
}

static void name_region(char *text, size_t room, const shape *s, bool one_expert)
{
    const evidence *e = s->e;
    char of[32] = "", tokens[32] = "";
    const char *row = q3_tap_is_square(e->id) ? "key" : "channel";
    if (one_expert) snprintf(of, sizeof of, " of expert %zu", s->first_expert);
    size_t token = q3_own_token(e, s->first_token);
    if (s->token_count == 1) snprintf(tokens, sizeof tokens, " of token %zu", token);
    if (s->channel_count == 1)
        snprintf(text, room, "%s %zu%s%s", row, s->first_channel, of, tokens);
    else if (s->first_channel > 0 || s->last_channel + 1 < s->N)
        snprintf(text, room, "%ss %zu to %zu%s%s", row, s->first_channel, s->last_channel, of,
                 tokens);
    else if (one_expert) snprintf(text, room, "expert %zu%s", s->first_expert, tokens);
    else if (s->token_count == 1) snprintf(text, room, "token %zu", token);
    else text[0] = 0;
}

/* The region, or the whole tensor, times one factor, by least squares. */
static void try_factor(diagnosis *d, shape *s, bool whole)
{
    const evidence *e = s->e;
    bool one_expert = s->experts > 0 && s->expert_count == 1;
    double xy = 0, xx = 0;
    char where[96], text[160];
    /* chance explains them as well */
    if (d->rounding && !whole && s->channels[s->first_channel] < 5) return;
    name_region(where, sizeof where, s, one_expert);
    if (!whole && where[0] == 0) return; /* the region is the whole */
    memcpy(s->y, e->ours, e->T * e->row * sizeof *s->y);
    for (size_t t = e->first; t < e->T; t++)
        for (size_t i = 0; i < e->row; i++) {
            double x = (double)s->base[t * e->row + i], theirs = (double)e->theirs[t * e->row + i];
            if (!(whole || inside(s, t, i, one_expert)) || !(x * theirs - x * theirs == 0) ||
                e->bound[t * e->row + i] < 0)
                continue;
            xx += x * x;
            xy += x * theirs;
        }
    double factor = xx > 0 ? xy / xx : 1;
    for (size_t t = e->first; t < e->T; t++)
        for (size_t i = 0; i < e->row; i++)
            if (whole || inside(s, t, i, one_expert))
                s->y[t * e->row + i] = q3_round(factor * (double)s->base[t * e->row + i],
                                                rounded_to(e));
    if (whole) snprintf(text, sizeof text, "scaled by a factor %.6g", factor);
    else snprintf(text, sizeof text, "%s alone scaled by a factor %.6g", where, factor);
    q3_weigh_as(d, s->y, text, whole ? "scaled by a factor" : "a part scaled by a factor");
}

/* Every token with its own factor. */
static void try_token_factors(diagnosis *d, shape *s)
{
    const evidence *e = s->e;
    double least = 0, most = 0;
    for (size_t t = e->first; t < e->T; t++) {
        double xy = 0, xx = 0;
        for (size_t i = t * e->row; i < (t + 1) * e->row; i++) {
            xx += (double)s->base[i] * (double)s->base[i];
            xy += (double)s->base[i] * (double)e->theirs[i];
        }
        double factor = xx > 0 ? xy / xx : 1;
        if (t == e->first || factor < least) least = factor;
        if (t == e->first || factor > most) most = factor;
        for (size_t i = t * e->row; i < (t + 1) * e->row; i++)
            s->y[i] = q3_round(factor * (double)s->base[i], rounded_to(e));
    }
    char text[160];
    snprintf(text, sizeof text, "each token scaled by a factor of its own, %.4g to %.4g", least,
             most);
    if (e->row > 2) q3_weigh_as(d, s->y, text, "each token scaled by a factor of its own");
}

/* A constant added to every element, or to every channel its own, as a bias is. */
static void try_offset(diagnosis *d, shape *s, bool by_channel)
{
    const evidence *e = s->e;
    size_t begin = e->first * e->row, end = e->T * e->row, step = by_channel ? e->row : 1;
    char text[160] = "a constant added to each channel, as a bias is";
    if (by_channel && e->T < e->first + 4) return; /* fits anything */
    if (by_channel && s->channel_count == 1)
        snprintf(text, sizeof text, "a constant added to channel %zu", s->first_channel);
    for (size_t c = 0; c < (by_channel ? e->row : 1); c++) {
        double sum = 0, count = 0;
        for (size_t i = begin + c; i < end; i += step) {
            double more = (double)e->theirs[i] - (double)s->base[i];
            if (more - more == 0 && e->bound[i] >= 0) sum += more, count++;
        }
        double offset = count > 0 ? sum / count : 0;
        for (size_t i = begin + c; i < end; i += step)
            s->y[i] = q3_round((double)s->base[i] + offset, rounded_to(e));
        if (!by_channel) snprintf(text, sizeof text, "a constant added, %.4g", offset);
    }
    q3_weigh_as(d, s->y, text, by_channel ? text : "a constant added");
}

/* ==== Values of another place ================================================================= */

/* One channel with the values of another, or of the token before. */
static void try_channel(diagnosis *d, shape *s)
{
    const evidence *e = s->e;
    size_t c = s->first_channel;
    char text[160];
    if (s->channel_count != 1) return;
    for (size_t other = 0; other <= s->N && s->N <= 65536; other++) {
        bool before = other == s->N, good = other != c;
        for (size_t t = e->first; t < e->T && good; t++)
            for (size_t at = t * e->row + c; at < (t + 1) * e->row && good; at += s->N) {
                if (before && t == e->first) continue;
                good = q3_agrees(e, at, before ? e->ours[at - e->row] : e->ours[at - c + other]);
            }
        if (!good) continue;
        memcpy(s->y, e->ours, e->T * e->row * sizeof *s->y);
        for (size_t t = e->first + before; t < e->T; t++)
            for (size_t at = t * e->row + c; at < (t + 1) * e->row; at += s->N)
                s->y[at] = before ? e->ours[at - e->row] : e->ours[at - c + other];
        if (before)
            snprintf(text, sizeof text, "channel %zu keeps the values of the token before", c);
        else snprintf(text, sizeof text, "channel %zu has the values of channel %zu", c, other);
        q3_weigh_as(d, s->y, text, "a channel with other values");
    }
}

/* From the first wrong channel on, those of so many channels further; none beyond the ends. */
static void try_shift(diagnosis *d, shape *s)
{
    const evidence *e = s->e;
    size_t reach = s->N < 512 ? s->N - 1 : 512, c = s->first_channel;
    char text[160];
    for (size_t k = 1; k <= 2 * reach && d->strength != FULL && s->channel_count > 1; k++) {
        size_t by = (k + 1) / 2;
        bool up = k % 2 == 1;
        if (up ? c + by >= s->N : c < by) continue;
        size_t at = s->first_token * e->row + s->first_part * s->N + c;
        if (!q3_agrees(e, at, e->ours[up ? at + by : at - by])) continue;
        memcpy(s->y, e->ours, e->T * e->row * sizeof *s->y);
        for (size_t i = 0; i < e->T * e->row; i++) {
            size_t channel = i % e->row % s->N;
            if (channel < c || (up && channel + by >= s->N)) continue;
            s->y[i] = e->ours[up ? i + by : i - by];
        }
        if (up)
            snprintf(text, sizeof text, "channels from %zu on shifted, each has the next but %zu",
                     c, by - 1);
        else
            snprintf(text, sizeof text, "channels from %zu on shifted, each has the one %zu before",
                     c, by);
        if (up && by == 1) snprintf(text, sizeof text, "channels from %zu on shifted by one", c);
        q3_weigh_as(d, s->y, text, "channels shifted");
    }
}

static void swap_rows(shape *s, size_t a, size_t b)
{
    size_t n = s->e->row;
    memcpy(s->y, s->e->ours, s->e->T * n * sizeof *s->y);
    memcpy(s->y + a * n, s->e->ours + b * n, n * sizeof *s->y);
    memcpy(s->y + b * n, s->e->ours + a * n, n * sizeof *s->y);
}

static void try_tokens(diagnosis *d, shape *s)
{
    const evidence *e = s->e;
    size_t n = e->row, first = q3_own_token(e, s->first_token);
    char text[160];
    if (s->token_count == 2) {
        swap_rows(s, s->first_token, s->last_token);
        snprintf(text, sizeof text, "tokens %zu and %zu swapped", first,
                 q3_own_token(e, s->last_token));
        q3_weigh_as(d, s->y, text, "tokens swapped");
    }
    for (size_t other = e->first; other < e->T && s->token_count == 1; other++) {
        memcpy(s->y, e->ours, e->T * n * sizeof *s->y);
        memcpy(s->y + s->first_token * n, e->ours + other * n, n * sizeof *s->y);
        snprintf(text, sizeof text, "token %zu has the values of token %zu", first,
                 q3_own_token(e, other));
        if (other == s->first_token) continue;
        q3_weigh_as(d, s->y, text, "a token with the values of another");
    }
    if (e->T > e->first + 1) {
        memcpy(s->y + (e->first + 1) * n, e->ours + e->first * n,
               (e->T - e->first - 1) * n * sizeof *s->y);
        memcpy(s->y + e->first * n, e->ours + e->first * n, n * sizeof *s->y);
        q3_weigh(d, s->y, "values of the token before, shifted by one");
        memcpy(s->y + e->first * n, e->ours + (e->first + 1) * n,
               (e->T - e->first - 1) * n * sizeof *s->y);
        memcpy(s->y + (e->T - 1) * n, e->ours + (e->T - 1) * n, n * sizeof *s->y);
        q3_weigh(d, s->y, "values of the next token, shifted by one");
    }
    for (size_t i = e->first * n; i < e->T * n; i++)
        s->y[i] = e->ours[i - i % s->N + (i % s->N + s->N / 2) % s->N];
    if (s->N % 2 == 0) q3_weigh(d, s->y, "halves of the channels swapped");
}

/* ==== Values that are lost ==================================================================== */

static void try_values(diagnosis *d, shape *s)
{
    static const char *const names[] = {"values rounded to bfloat16", "values rounded to float16"};
    const evidence *e = s->e;
    size_t begin = e->first * e->row, end = e->T * e->row, nans = 0;
    for (size_t f = 0; f < 2; f++) {
        for (size_t i = begin; i < end; i++)
            s->y[i] = (float)q3_to_format((double)e->ours[i], (format)f);
        q3_weigh(d, s->y, names[f]);
    }
    for (size_t i = begin; i < end; i++) {
        bool lost = e->ours[i] != e->ours[i];
        s->y[i] = lost ? 0.0f : e->ours[i];
        nans += lost;
    }
    if (nans > 0) q3_weigh(d, s->y, "NaN replaced by 0");
    for (size_t i = begin; i < end; i++) s->y[i] = 0.0f;
    q3_weigh(d, s->y, "zeros");
}

/* Zeros here and there, and everything else larger by one factor. */
static void try_dropout(diagnosis *d, shape *s)
{
    const evidence *e = s->e;
    size_t zeros = 0, all = 0;
    double xy = 0, xx = 0;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++) {
        double x = (double)s->base[i], theirs = (double)e->theirs[i];
        if (x == 0) continue;
        all++;
        zeros += theirs == 0;
        if (theirs != 0) xx += x * x, xy += x * theirs;
    }
    double factor = xx > 0 ? xy / xx : 0;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++)
        s->y[i] = e->theirs[i] == 0.0f ? 0.0f
            : q3_round(factor * (double)s->base[i], rounded_to(e));
    char text[160];
    snprintf(text, sizeof text,
             "dropout left on, %zu of %zu elements are 0 and the others times %.4g", zeros, all,
                 factor);
    if (zeros > 0 && zeros * 2 < all && factor > 1.005)
        q3_weigh_as(d, s->y, text, "dropout left on");
}

/* ==== Where =================================================================================== */

static void say_place(diagnosis *d, const shape *s)
{
    const evidence *e = s->e;
    size_t token = q3_own_token(e, s->first_token);
    size_t tokens = s->judged_tokens, width = s->last_channel - s->first_channel + 1;
    char what[120] = "";
    bool square = q3_tap_is_square(e->id), slots = s->experts > 0;
    bool one_expert = slots && s->experts > 1 && s->expert_count == 1;
    if (s->channel_count == 1 && s->N > 1) name_region(what, sizeof what, s, one_expert);
    else if (one_expert) snprintf(what, sizeof what, "expert %zu", s->first_expert);
    else if (s->part_count == 1 && s->heads > 1)
        snprintf(what, sizeof what, "%s %zu", slots ? "slot" : "head", s->first_part);
    else if (s->token_count == 1 && tokens > 1)
        snprintf(what, sizeof what, "%s%s%zu", s->last_token + 1 == e->T ? "the last token, " : "",
                 s->last_token + 1 == e->T ? "" : "token ", token);
    else if (s->first_token > e->first + 1 && s->last_token + 1 == e->T &&
             s->token_count == e->T - s->first_token)
        snprintf(what, sizeof what, "tokens from %zu on", token);
    else if (s->channel_count == width && 2 * width <= s->N && !square)
        snprintf(what, sizeof what, "channels %zu to %zu", s->first_channel, s->last_channel);
    if (what[0] == 0) return;
    d->strength = PLACE;
    d->cause[0] = 0;
    snprintf(d->text, sizeof d->text, "a mistake in one place: only %s wrong", what);
}

/* Wrong where an expert is used, and right elsewhere. */
static void say_expert(diagnosis *d, const shape *s)
{
    const evidence *e = d->e;
    const float *ids = e->tap[Q3_TAP_TOPK_INDICES];
    size_t A = e->config->num_experts_per_tok;
    if ((e->id != Q3_TAP_MLP && e->id != Q3_TAP_LAYER) || q3_in_dense_layer(e)) return;
    if (ids == NULL || s->token_count < 2) return;
    for (size_t expert = 0; expert < e->config->num_experts; expert++) {
        size_t with = 0, right_without = 0, other = 0;
        for (size_t t = e->first; t < e->T; t++) {
            bool uses = false;
            for (size_t a = 0; a < A; a++) uses = uses || ids[t * A + a] == (float)expert;
            with += uses && s->tokens[t] > 0;
            right_without += !uses && s->tokens[t] == 0;
            other += uses != (s->tokens[t] > 0);
        }
        if (other > 0 || with < 2 || right_without < 2) continue;
        d->strength = PLACE;
    d->cause[0] = 0;
        snprintf(d->text, sizeof d->text,
                 "a mistake in one place: all tokens with expert %zu wrong, no other", expert);
    }
}

/* Ids that stand twice in a token's choice, where all are valid. */
static void say_choice(diagnosis *d)
{
    const evidence *e = d->e; /* sorted */
    size_t tokens = 0;
    for (size_t t = e->first; t < e->T; t++) {
        bool twice = false;
        for (size_t i = t * e->row + 1; i < (t + 1) * e->row; i++)
            twice = twice || e->theirs[i] == e->theirs[i - 1];
        for (size_t i = t * e->row; i < (t + 1) * e->row; i++)
            if (!(e->theirs[i] >= 0 && e->theirs[i] < (float)e->config->num_experts)) return;
        tokens += twice;
    }
    if (tokens == 0 || d->strength != NOTHING) return;
    d->strength = PLACE;
    d->cause[0] = 0;
    snprintf(d->text, sizeof d->text, "the same expert chosen twice in %zu of %zu tokens", tokens,
             e->T - e->first);
}

static void prepare(shape *s)
{
    const evidence *e = s->e;
    size_t dims[3], rank = q3_tap_shape(dims, e->config, e->id, e->T);
    bool square = q3_tap_is_square(e->id);
    s->N = square ? e->T : rank == 3 ? dims[2] : e->row;
    s->heads = e->row / s->N;
    if (q3_tap_of_experts(e->id) && e->tap[Q3_TAP_TOPK_INDICES] != NULL)
        s->experts = e->config->num_experts;
    s->tokens = calloc(e->T + 1, sizeof *s->tokens);
    s->channels = calloc(s->N + 1, sizeof *s->channels);
    s->parts = calloc(s->heads + 1, sizeof *s->parts);
    s->by_expert = calloc(s->experts + 1, sizeof *s->by_expert);
    s->y = calloc(e->T, e->row * sizeof *s->y);
}

void q3_locate(diagnosis *d)
{
    shape s = {.e = d->e};
    pass exact = {0};
    const q3_node *node = q3_graph_node(d->e->config, d->e->id, d->e->layer);
    mistake m = {.at = TAP_BIT(d->e->id), .edits = {{RESULT, UNROUNDED, 0}}};
    if (d->e->id == Q3_TAP_TOPK_INDICES) {
        say_choice(d);
        return;
    }
    prepare(&s);
    bool good = s.tokens != NULL && s.channels != NULL && s.parts != NULL && s.by_expert != NULL &&
        s.y != NULL;
    bool map = node != NULL && (node->op == Q3_OP_LINEAR || node->op == Q3_OP_EXPERT_LINEAR);
    s.base = d->e->ours;
    if (map && q3_pass_run(&exact, d->e, &m) != NULL) s.base = exact.made[d->e->id];
    if (good) look(&s, d->rounding);
    if (good && s.token_count > 0) {
        try_values(d, &s);
        try_factor(d, &s, true);
        try_factor(d, &s, false);
        try_channel(d, &s);
        try_tokens(d, &s);
        try_shift(d, &s);
        if (d->e->id == Q3_TAP_PROBS) try_dropout(d, &s);
        if (d->strength == NOTHING) try_token_factors(d, &s);
        if (d->strength == NOTHING) try_offset(d, &s, false);
        if (d->strength == NOTHING) try_offset(d, &s, true);
        if (d->strength == NOTHING && !d->rounding) say_expert(d, &s);
        if (d->strength == NOTHING && !d->rounding) say_place(d, &s);
    }
    d->no_memory = d->no_memory || !good || exact.no_memory;
    q3_pass_free(&exact);
    free(s.tokens);
    free(s.channels);
    free(s.parts);
    free(s.by_expert);
    free(s.y);
}
