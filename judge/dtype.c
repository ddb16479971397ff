/* SPDX-License-Identifier: MIT */
/* dtype.c - which dtype a run had whose file does not say it: the tensors show it (MODEL.md
 * 12.10). */
#include "judge/backend.h"

#include "host/taps.h"

#include <stdio.h>
#include <string.h>

/* What is known of one tensor's elements. */
typedef struct contents {
    bool bf16, f16; /* all that are finite are values of this dtype */
    size_t telling; /* elements that are no powers of two: 1 and 1/2 are values of every dtype */
} contents;

/* So many telling elements say that a tensor of F32 was rounded to bfloat16: of float16's values
 * every eighth is one of bfloat16's, of float32's every 65536th. */
#define ENOUGH 32

static void look_at(contents *c, const float *x, size_t n)
{
    for (size_t i = 0; i < n && (c->bf16 || c->f16); i++) {
        uint32_t bits;
        double value = (double)x[i];
        if (value - value != 0) continue;
        memcpy(&bits, &x[i], sizeof bits);
        c->bf16 = c->bf16 && (bits & 0xFFFF) == 0;
        c->f16 = c->f16 && q3_round(value, Q3_F16) == x[i];
        c->telling += (bits & 0x7FFFFF) != 0;
    }
}

#define PIECE 256

/* The dtype that the values need; Q3_AUTO: they show none. */
static q3_dtype needed(const q3_entry *e)
{
    float x[PIECE];
    uint64_t count = 1;
    contents c = {true, true, 0};
    for (size_t i = 0; i < e->rank; i++) count *= e->shape[i];
    for (uint64_t at = 0; at < count && (c.bf16 || c.f16); at += PIECE) {
        size_t n = count - at < PIECE ? (size_t)(count - at) : PIECE;
        q3_entry_floats(x, e, at, n);
        look_at(&c, x, n);
    }
    if (!c.bf16 && !c.f16) return Q3_F32;
    if (c.telling < ENOUGH) return Q3_AUTO;
    return c.bf16 ? Q3_BF16 : Q3_F16;
}

/* Tensors that honest runs in bfloat16 and float16 keep in float32: fused softmax and routers,
 * logits that are cast for sampling. They do not show a float32 run. */
static bool often_wider(q3_tap_id id)
{
    return id == Q3_TAP_SCORES || id == Q3_TAP_PROBS || id == Q3_TAP_GATE ||
           id == Q3_TAP_TOPK_WEIGHTS || id == Q3_TAP_LM_HEAD;
}

/* What a tensor says of the run's dtype; Q3_AUTO: nothing. Tables of cos and sin say nothing: they
 * are made once, in any dtype. Nor does an embedding whose values need less than float32: the
 * checkpoint may have no more. */
static q3_dtype vote(const backend_tensor *tensor, q3_tap_id id)
{
    const q3_entry *e = tensor->entry;
    if (e == NULL || tensor->layouts == 0 || q3_tap_info(id)->dtype != Q3_AUTO) return Q3_AUTO;
    if (id == Q3_TAP_COS || id == Q3_TAP_SIN) return Q3_AUTO;
    if (e->dtype == Q3_BF16 || e->dtype == Q3_F16) return e->dtype;
    q3_dtype dtype = needed(e);
    if (dtype == Q3_F32) return often_wider(id) ? Q3_AUTO : Q3_F32;
    return id == Q3_TAP_EMBED_TOKENS ? Q3_AUTO : dtype;
}

static void say(backend *b, q3_dtype found, const size_t votes[Q3_AUTO], bool stored)
{
    size_t narrow = votes[Q3_BF16] + votes[Q3_F16];
    const char *name = found != Q3_AUTO ? q3_dtype_name(found) : "";
    if (found == Q3_AUTO)
        snprintf(b->dtype_note, sizeof b->dtype_note,
                 "the file does not say its dtype, and no tensor shows it: judged as the model's");
    else if (found == Q3_F32 && narrow == 0)
        snprintf(b->dtype_note, sizeof b->dtype_note,
                 "the file does not say its dtype; its values need float32: judged as float32");
    else if (votes[Q3_F32] > 0)
        snprintf(b->dtype_note, sizeof b->dtype_note,
                 "the file does not say its dtype; %zu tensors need float32, %zu bfloat16 or "
                 "float16: judged as %s", votes[Q3_F32], narrow, name);
    else if (!stored)
        snprintf(b->dtype_note, sizeof b->dtype_note,
                 "the file does not say its dtype; its values are all %s: judged as %s", name,
                 name);
}

q3_dtype q3_backend_dtype(backend *b)
{
    size_t votes[Q3_AUTO + 1] = {0};
    bool stored = true;
    b->dtype_note[0] = 0;
    if (b->dtype != Q3_AUTO) return b->dtype;
    for (size_t i = 0; i < b->config->num_hidden_layers * Q3_TAP_COUNT; i++) {
        const backend_tensor *tensor = &b->tensors[i];
        q3_dtype dtype = vote(tensor, (q3_tap_id)(i % Q3_TAP_COUNT));
        votes[dtype]++;
        if (dtype != Q3_AUTO && tensor->entry->dtype != dtype) stored = false;
    }
    q3_dtype narrow = votes[Q3_BF16] >= votes[Q3_F16] ? Q3_BF16 : Q3_F16, found = narrow;
    if (votes[Q3_F32] > 0 && votes[Q3_F32] >= 3 * (votes[Q3_BF16] + votes[Q3_F16])) found = Q3_F32;
    else if (votes[narrow] == 0) found = Q3_AUTO;
    say(b, found, votes, stored);
    return found;
}
