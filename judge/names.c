/* SPDX-License-Identifier: MIT */
/* names.c - names that are no tap's but look like one's, and which known name is nearest. */
#include "judge/backend.h"

#include <stdio.h>
#include <string.h>

/* How many single characters must be inserted, left out or exchanged to make b of a (Levenshtein);
 * `most` if it is not less. */
static size_t distance(const char *a, const char *b, size_t most)
{
    size_t n = strlen(a), m = strlen(b), row[Q3_NAME_ROOM + 1];
    if (n > Q3_NAME_ROOM || m > Q3_NAME_ROOM || (n > m ? n - m : m - n) >= most) return most;
    for (size_t k = 0; k <= m; k++) row[k] = k;
    for (size_t i = 1; i <= n; i++) {
        size_t corner = row[0], least = row[0] = i;
        for (size_t k = 1; k <= m; k++) {
            size_t both = corner + (a[i - 1] != b[k - 1]);
            size_t one = (row[k] < row[k - 1] ? row[k] : row[k - 1]) + 1;
            corner = row[k];
            row[k] = both < one ? both : one;
            if (row[k] < least) least = row[k];
        }
        if (least >= most) return most;
    }
    return row[m] < most ? row[m] : most;
}

/* The search for the name that is nearest. */
typedef struct search {
    const backend *b;
    const char *name;
    char written[Q3_NAME_ROOM]; /* as the tables write it */
    size_t best;
    char nearest[Q3_TAP_NAME_SIZE];
} search;

/* Takes `known` if it is nearer than any before, and a tap of the model. */
static void consider(search *s, const char *known)
{
    size_t L = s->b->config->num_hidden_layers;
    size_t away = distance(s->name, known, s->best);
    q3_alias alias;
    away = distance(s->written, known, away);
    if (away >= s->best || strlen(known) >= sizeof s->nearest) return;
    if (!q3_tap_alias(&alias, s->b->config, known) ||
        !q3_tap_exists(s->b->config, 0, L, alias.id, alias.layer))
        return;
    s->best = away;
    snprintf(s->nearest, sizeof s->nearest, "%s", known);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* The first number in the name, as a layer of the model: a larger one counts as the last. */
static size_t layer_in(const char *name, size_t layers)
{
    size_t number = 0;
    while (*name != 0 && !is_digit(*name)) name++;
    for (; is_digit(*name) && number < layers; name++) number = 10 * number + (size_t)(*name - '0');
    return number < layers ? number : layers - 1;
}

static void find_nearest(search *s)
{
    char known[Q3_NAME_ROOM];
    const char *pattern;
    size_t layer = layer_in(s->name, s->b->config->num_hidden_layers);
    for (int id = 0; id < Q3_TAP_COUNT; id++) {
        q3_tap_name(known, (q3_tap_id)id, layer);
        consider(s, known);
    }
    for (size_t i = 0; (pattern = q3_alias_pattern(i)) != NULL; i++) {
        const char *at = strchr(pattern, '#');
        int before = (int)(at != NULL ? (size_t)(at - pattern) : strlen(pattern));
        if (at == NULL) snprintf(known, sizeof known, "%s", pattern);
        else snprintf(known, sizeof known, "%.*s%zu%s", before, pattern, layer, at + 1);
        consider(s, known);
    }
}

/* A word that taps' names are made of, beside a number. */
static bool sounds_like_a_tap(const char *name)
{
    static const char *const words[] = {"attn", "attention", "mlp", "norm", "proj", "expert",
                                        "ffn", "moe", "rope", "rotary", "router", "embed", "hidden",
                                        "logits", "layer", "resid"};
    bool number = strpbrk(name, "0123456789") != NULL, word = false;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        word = word || strstr(name, words[i]) != NULL;
    return number && word;
}

/* Whether two names differ in their numbers at most. */
static bool same_kind(const char *a, const char *b)
{
    for (;;) {
        if (is_digit(*a) && is_digit(*b)) {
            while (is_digit(*a)) a++;
            while (is_digit(*b)) b++;
        }
        if (*a != *b) return false;
        if (*a == 0) return true;
        a++;
        b++;
    }
}

/* Whether it is what a module reads whose output is a tap: such names are right, and no tap's. */
static bool is_input(const backend *b, const char *written)
{
    static const char input[] = ".input";
    char output[Q3_NAME_ROOM];
    q3_alias alias;
    size_t n = strlen(written), end = strlen(input);
    if (n < end || n + 2 > sizeof output || strcmp(written + n - end, input) != 0) return false;
    snprintf(output, sizeof output, "%.*s.output", (int)(n - end), written);
    return q3_tap_alias(&alias, b->config, output) &&
           q3_tap_exists(b->config, 0, b->config->num_hidden_layers, alias.id, alias.layer);
}

void q3_note_unknown(backend *b, const char *name)
{
    search s = {.b = b, .name = name};
    size_t length = strlen(name), near = length / 3 > 2 ? length / 3 : 2;
    if (b->unknown++ == 0) b->unknown_name = name;
    for (size_t i = 0; i < b->kind_count; i++)
        if (same_kind(name, b->kinds[i])) return;
    if (b->kind_count == Q3_UNKNOWN_KINDS || b->unknown_count == Q3_UNKNOWN_MOST) return;
    b->kinds[b->kind_count++] = name;
    if (length >= Q3_NAME_ROOM || !q3_canonical_name(s.written, name)) s.written[0] = 0;
    if (is_input(b, s.written)) return;
    s.best = near + 1;
    find_nearest(&s);
    if (s.nearest[0] == 0 && !sounds_like_a_tap(name)) return;
    q3_unknown *u = &b->unknowns[b->unknown_count++];
    u->name = name;
    memcpy(u->nearest, s.nearest, sizeof u->nearest);
}
