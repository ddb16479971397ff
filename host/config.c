/* SPDX-License-Identifier: MIT */
/* config.c - config.json of a Hugging Face folder, in the spelling of transformers 4.x or of 5.x.
 *
 * Absent keys get the defaults of Qwen3MoeConfig. What transformers 4.57.6 and 5.17.0 compute
 * differently, and what either of them cannot run, is refused; so is a number outside the range
 * that the arithmetic is proved for. Unknown keys have no effect in either version and are
 * ignored. */
#include "host/files.h"

#include <float.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Token and expert ids are int32, and products of two sizes must fit 64 bits. */
#define LARGEST INT32_MAX
#define MOST_LAYERS 65535
#define SIZE_TEXT "an integer from 1 to 2147483647"

/* One object of the file. Every reader returns false after it has filled error. */
typedef struct source {
    const q3_json *j;
    uint32_t object;    /* its node */
    const char *prefix; /* put before a key in messages */
    q3_error *error;
} source;

/* The value of a key; 0: it is absent. */
static uint32_t find(const source *s, const char *key)
{
    return q3_json_find(s->j, s->object, key);
}

/* The same, but a key whose value is null counts as absent. */
static uint32_t find_value(const source *s, const char *key)
{
    uint32_t node = find(s, key);
    return node != 0 && q3_json_type_of(s->j, node) == Q3_JSON_NULL ? 0 : node;
}

/* Writes the message "FILE: KEY: found VALUE, expected WHAT"; always false. */
static bool refuse(const source *s, const char *key, const char *expected)
{
    char thing[96];
    snprintf(thing, sizeof thing, "%s%s", s->prefix, key);
    q3_json_fail(s->j, find(s, key), thing, expected, s->error);
    return false;
}

/* Two keys that mean the same hold different values. */
static bool refuse_both(const source *a, const char *key_a, const source *b, const char *key_b)
{
    const q3_json *j = a->j;
    const q3_json_node *x = &j->nodes[find(a, key_a)], *y = &j->nodes[find(b, key_b)];
    int length_x = (int)(x->end - x->start < 60 ? x->end - x->start : 60);
    int length_y = (int)(y->end - y->start < 60 ? y->end - y->start : 60);
    q3_fail(a->error, Q3_ERROR_INPUT,
            "%.200s: %s%s and %s%s: found %.*s and %.*s, expected the same in both", j->name,
            a->prefix, key_a, b->prefix, key_b, length_x, (const char *)j->text + x->start,
            length_y, (const char *)j->text + y->start);
    return false;
}

/* An integer from `least` on; an absent key has the fallback. */
static bool read_size(const source *s, const char *key, size_t least, size_t fallback, size_t *out)
{
    uint32_t node = find(s, key);
    uint64_t value = fallback;
    if (node != 0 && (!q3_json_uint(s->j, node, &value) || value < least || value > LARGEST))
        return refuse(s, key, least == 0 ? "an integer from 0 to 2147483647" : SIZE_TEXT);
    *out = (size_t)value;
    return true;
}

/* true or false, no other spelling; an absent key has the fallback. */
static bool read_bool(const source *s, const char *key, bool fallback, bool *out)
{
    uint32_t node = find(s, key);
    q3_json_type type = node != 0 ? q3_json_type_of(s->j, node) : Q3_JSON_NULL;
    if (node != 0 && type != Q3_JSON_TRUE && type != Q3_JSON_FALSE)
        return refuse(s, key, "true or false");
    *out = node != 0 ? type == Q3_JSON_TRUE : fallback;
    return true;
}

/* A number that is there, from low to high; `what` says so in words. */
static bool read_real(const source *s, const char *key, double low, double high, const char *what,
                      double *out)
{
    uint32_t node = find(s, key);
    double value = 0.0;
    if (node == 0 || !q3_json_double(s->j, node, &value) || !(value >= low && value <= high))
        return refuse(s, key, what);
    *out = value;
    return true;
}

/* ==== Rotary position embedding =============================================================== */

/* Real parameters lie between these, so that no quotient or logarithm of them leaves float32. */
#define SMALL 1e-30
#define GREAT 1e30

/* Whether a node is there and is this string. */
static bool is_string(const source *s, uint32_t node, const char *text)
{
    return node != 0 && q3_json_equal(s->j, node, text);
}

/* rope_type, or type as it was called before; 4.x lets the second win, 5.x the first. */
static bool read_rope_type(const source *s, bool required, q3_rope_type *type)
{
    const char *key = find(s, "rope_type") != 0 || find(s, "type") == 0 ? "rope_type" : "type";
    uint32_t node = find(s, key), other = find(s, "type");
    *type = Q3_ROPE_DEFAULT;
    if (node == 0 && !required) return true;
    for (size_t i = 0; i < Q3_ROPE_TYPES; i++) {
        const char *name = q3_rope_name((q3_rope_type)i);
        if (!is_string(s, node, name)) continue;
        *type = (q3_rope_type)i;
        return other == 0 || is_string(s, other, name) || refuse_both(s, "rope_type", s, "type");
    }
    return refuse(s, key, "\"default\", \"linear\", \"dynamic\", \"yarn\" or \"llama3\"");
}

/* The length that yarn and llama3 were trained at. 5.x lets a key beside rope_scaling win over the
 * one inside, 4.x does not know it; null and 0 divide by zero in one of the two. */
static bool read_original_length(const source *s, const source *top, const q3_config *config,
                                 q3_rope *rope)
{
    static const char key[] = "original_max_position_embeddings";
    uint64_t length = config->max_position_embeddings, above = 0;
    uint32_t node = find(s, key);
    if (node != 0 ? !q3_json_uint(s->j, node, &length) || length == 0 || length > LARGEST
                  : rope->type == Q3_ROPE_LLAMA3)
        return refuse(s, key, SIZE_TEXT);
    rope->original_max_position_embeddings = (double)length;
    node = find(top, key);
    if (node != 0 && (!q3_json_uint(s->j, node, &above) || above != length))
        return refuse(top, key, "no such key, or the same as in rope_scaling");
    return true;
}

/* YaRN's parameters: null and 0 mean the default, as in both versions. */
static bool read_yarn(const source *s, q3_rope *rope)
{
    static const char positive[] = "a number from 1e-30 to 1e30, 0 or null";
    const struct { const char *key; double fallback, *out; } real[] = {
        {"beta_fast", 32.0, &rope->beta_fast}, {"beta_slow", 1.0, &rope->beta_slow},
        {"mscale", 0.0, &rope->mscale}, {"mscale_all_dim", 0.0, &rope->mscale_all_dim}};
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        *real[i].out = 0.0;
        if (find_value(s, real[i].key) != 0 &&
            !read_real(s, real[i].key, 0.0, GREAT, positive, real[i].out))
            return false;
        if (*real[i].out == 0.0)
            *real[i].out = real[i].fallback;
        else if (*real[i].out < SMALL)
            return refuse(s, real[i].key, positive);
    }
    rope->has_attention_factor = find_value(s, "attention_factor") != 0;
    if (rope->has_attention_factor &&
        !read_real(s, "attention_factor", 0.0, GREAT, "a number from 0 to 1e30, or null",
                   &rope->attention_factor))
        return false;
    return read_bool(s, "truncate", true, &rope->truncate);
}

/* Llama 3's two factors. */
static bool read_llama3(const source *s, q3_rope *rope)
{
    if (!read_real(s, "low_freq_factor", SMALL, GREAT, "a number from 1e-30 to 1e30",
                   &rope->low_freq_factor) ||
        !read_real(s, "high_freq_factor", SMALL, GREAT, "a number from 1e-30 to 1e30",
                   &rope->high_freq_factor))
        return false;
    if (!(rope->high_freq_factor > rope->low_freq_factor))
        return refuse(s, "high_freq_factor", "more than low_freq_factor");
    return true;
}

/* theta > 1 makes every inverse frequency at most 1, so that no angle is above 2^20. */
static bool read_theta(const source *s, q3_rope *rope)
{
    static const char what[] = "a number above 1, up to 1e30";
    return read_real(s, "rope_theta", 1.0, GREAT, what, &rope->rope_theta) &&
           (rope->rope_theta > 1.0 || refuse(s, "rope_theta", what));
}

/* Both versions rotate whole heads of this model; a file that asks for less is refused. */
static bool check_no_partial_rotation(const source *s)
{
    double factor = 1.0;
    uint32_t node = find(s, "partial_rotary_factor");
    return node == 0 || (q3_json_double(s->j, node, &factor) && factor == 1.0) ||
           refuse(s, "partial_rotary_factor", "1, or no such key");
}

/* The parameters in a rope_scaling or rope_parameters object s, without rope_theta. */
static bool read_rope_object(const source *s, const source *top, const q3_config *config,
                             bool required, q3_rope *rope)
{
    uint32_t key = s->object + 1;
    for (uint32_t i = 0; i < s->j->nodes[s->object].count; i++, key = s->j->nodes[key + 1].next) {
        if (q3_json_type_of(s->j, key + 1) == Q3_JSON_OBJECT)
            return refuse(top, required ? "rope_scaling" : "rope_parameters",
                          "one set of parameters for all layers");
    }
    if (!check_no_partial_rotation(s) || !read_rope_type(s, required, &rope->type)) return false;
    if (rope->type == Q3_ROPE_DEFAULT) return true;
    if (!read_real(s, "factor", 1.0, GREAT, "a number from 1 to 1e30", &rope->factor)) return false;
    if (rope->type == Q3_ROPE_YARN || rope->type == Q3_ROPE_LLAMA3) {
        if (!read_original_length(s, top, config, rope)) return false;
        return rope->type == Q3_ROPE_YARN ? read_yarn(s, rope) : read_llama3(s, rope);
    }
    return true;
}

/* Whether two sets of parameters are the same but for rope_theta. */
static bool same_scaling(const q3_rope *a, const q3_rope *b)
{
    return a->type == b->type && a->factor == b->factor &&
           a->original_max_position_embeddings == b->original_max_position_embeddings &&
           a->has_attention_factor == b->has_attention_factor &&
           a->attention_factor == b->attention_factor && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->mscale == b->mscale &&
           a->mscale_all_dim == b->mscale_all_dim && a->truncate == b->truncate &&
           a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor;
}

/* theta grows to theta * growth^(hd / (hd - 2)), where growth is above 1. 79, where the power ends
 * at e^80: float32 steps may leave growth a tenth larger, which counts twice. */
static bool dynamic_fits(const q3_rope *rope, double hd, size_t most, size_t length)
{
    if (length <= most) return true;
    if (!(hd >= 4)) return false;
    double growth = rope->factor * (double)length / (double)most - (rope->factor - 1.0);
    return growth > 0 &&
           q3_log(rope->rope_theta) + q3_log(growth) * (hd / (hd - 2.0)) < 79.0;
}

/* Both ends of the ramp, in dimensions, become integers. */
static bool yarn_fits(const q3_rope *rope, double hd)
{
    const double turns[] = {rope->beta_fast, rope->beta_slow};
    for (size_t i = 0; i < 2; i++) {
        if (!(turns[i] >= SMALL && turns[i] <= GREAT)) return false;
        double length = rope->original_max_position_embeddings / (2.0 * 0x1.921fb54442d18p+1);
        double end = hd * q3_log(length / turns[i]) / (2.0 * q3_log(rope->rope_theta));
        if (!(end >= -0x1p52 && end <= 0x1p52)) return false;
    }
    return true;
}

/* The smooth step s = (turns - low) / (high - low) is at most 1 but for float32's steps: it ends
 * below 1 + (5 high / (high - low) + 6) u, u = 2^-24, and a frequency below max(s, 1) times what it
 * was. Twice low: 1 + 2^-20, with which the last position still stays at 2^20. Closer: where no
 * frequency above 2 pi / 7 is in the step, and then high - low need not be above 2^-18 high. */
static bool llama3_fits(const q3_rope *rope)
{
    double low = rope->low_freq_factor, high = rope->high_freq_factor;
    return high >= 2.0 * low || (high - low >= 0x1p-18 * high &&
                                 7.0 * high <= rope->original_max_position_embeddings);
}

bool q3_rope_fits(const q3_rope *rope, size_t head_dim, size_t most, size_t length)
{
    if (!(rope->rope_theta > 1.0 && rope->rope_theta <= GREAT)) return false;
    if (rope->type == Q3_ROPE_DEFAULT) return true;
    if (!(rope->factor >= 1.0 && rope->factor <= GREAT)) return false;
    if (rope->type == Q3_ROPE_DYNAMIC) return dynamic_fits(rope, (double)head_dim, most, length);
    if (rope->type == Q3_ROPE_YARN) return yarn_fits(rope, (double)head_dim);
    return rope->type != Q3_ROPE_LLAMA3 || llama3_fits(rope);
}

/* What is accepted one by one, and is too much together. s: where rope_theta stands; scaling: the
 * other parameters. */
static bool check_rope(const source *s, const source *scaling, const source *top,
                       const q3_config *config)
{
    const q3_rope *rope = &config->rope;
    if (rope->type == Q3_ROPE_DYNAMIC && config->head_dim == 2)
        return refuse(top, "head_dim", "at least 4 with dynamic RoPE");
    if (q3_rope_fits(rope, config->head_dim, config->max_position_embeddings, Q3_MAX_POSITIONS))
        return true;
    if (rope->type == Q3_ROPE_DYNAMIC)
        return refuse(s, "rope_theta",
                      "a smaller one: with this factor dynamic RoPE grows beyond float32");
    if (rope->type == Q3_ROPE_YARN)
        return refuse(s, "rope_theta",
                      "a larger one: YaRN's ramp would end beyond 2^52 dimensions");
    return refuse(scaling, "high_freq_factor",
                  "at least twice low_freq_factor, or 2^-18 of itself above it and at most "
                  "original_max_position_embeddings / 7");
}

/* 4.x: rope_theta and rope_scaling, which must name its type and whose own rope_theta counts in 5.x
 * alone. 5.x: rope_parameters with everything inside, or rope_theta beside it; no type is the
 * default. Where both are there they must mean the same. */
static bool read_rope(const source *s, q3_config *config)
{
    const char *key4 = "rope_scaling", *key5 = "rope_parameters";
    uint32_t node4 = find_value(s, key4), node5 = find_value(s, key5);
    source in4 = {s->j, node4, "rope_scaling.", s->error};
    source in5 = {s->j, node5, "rope_parameters.", s->error};
    q3_rope old = {.rope_theta = 10000.0}, new = {.rope_theta = 10000.0}, inner = {0};
    bool top_theta = find(s, "rope_theta") != 0;
    if (node4 != 0 && q3_json_type_of(s->j, node4) != Q3_JSON_OBJECT)
        return refuse(s, key4, "an object or null");
    if (node5 != 0 && q3_json_type_of(s->j, node5) != Q3_JSON_OBJECT)
        return refuse(s, key5, "an object");
    if (!check_no_partial_rotation(s) || (top_theta && !read_theta(s, &old))) return false;
    new.rope_theta = old.rope_theta;
    if (node4 != 0 && !read_rope_object(&in4, s, config, true, &old)) return false;
    if (node4 != 0 && find(&in4, "rope_theta") != 0) {
        if (!read_theta(&in4, &inner)) return false;
        if (inner.rope_theta != old.rope_theta)
            return top_theta ? refuse_both(s, "rope_theta", &in4, "rope_theta")
                             : refuse(&in4, "rope_theta",
                                      "rope_theta beside rope_scaling, not inside it");
    }
    if (node5 != 0) {
        if (!read_rope_object(&in5, s, config, false, &new)) return false;
        if (find(&in5, "rope_theta") != 0) {
            if (!read_theta(&in5, &new)) return false;
            if ((top_theta || node4 != 0) && new.rope_theta != old.rope_theta)
                return top_theta ? refuse_both(&in5, "rope_theta", s, "rope_theta")
                                 : refuse(&in5, "rope_theta",
                                          "10000, since there is none beside rope_scaling");
        }
        if ((top_theta || find(s, key4) != 0) && !same_scaling(&old, &new))
            return find(s, key4) != 0 ? refuse_both(s, key4, s, key5)
                                      : refuse_both(s, "rope_theta", s, key5);
    }
    config->rope = node5 != 0 ? new : old;
    bool inside = node5 != 0 && find(&in5, "rope_theta") != 0;
    return check_rope(inside ? &in5 : s, node5 != 0 ? &in5 : &in4, s, config);
}

/* ==== The other keys ========================================================================== */

/* Qwen3's dense models: the same layers, all without experts. */
static bool is_dense(const source *s)
{
    return is_string(s, find(s, "model_type"), "qwen3");
}

/* The sizes, each in its own range, and head_dim, whose default depends on two of them, or is 128
 * (Qwen3Config). */
static bool read_sizes(const source *s, q3_config *c)
{
    const bool dense = c->dense = is_dense(s);
    const struct { const char *key; size_t least, fallback, *out; } size[] = {
        {"vocab_size", 1, 151936, &c->vocab_size},
        {"hidden_size", 1, dense ? 4096 : 2048, &c->hidden_size},
        {"intermediate_size", 1, dense ? 22016 : 6144, &c->intermediate_size},
        {"num_hidden_layers", 0, dense ? 32 : 24, &c->num_hidden_layers},
        {"num_attention_heads", 1, 32, &c->num_attention_heads},
        {"num_key_value_heads", 1, dense ? 32 : 4, &c->num_key_value_heads},
        {"max_position_embeddings", 1, 32768, &c->max_position_embeddings},
        {"num_experts", 0, 128, &c->num_experts},
        {"num_local_experts", 0, 128, &c->num_experts}, /* the name in 5.x */
        {"num_experts_per_tok", 1, 8, &c->num_experts_per_tok},
        {"moe_intermediate_size", 1, 768, &c->moe_intermediate_size},
        {"decoder_sparse_step", 1, 1, &c->decoder_sparse_step}};
    size_t old = 0;
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        bool again = strcmp(size[i].key, "num_local_experts") == 0 && find(s, "num_experts") != 0;
        old = c->num_experts;
        if (again && find(s, size[i].key) == 0) continue;
        if (!read_size(s, size[i].key, size[i].least, size[i].fallback, size[i].out)) return false;
        if (again && old != c->num_experts)
            return refuse_both(s, "num_experts", s, "num_local_experts");
    }
    if (c->num_hidden_layers > MOST_LAYERS) return refuse(s, "num_hidden_layers", "at most 65535");
    if (dense) c->num_experts = 0;
    size_t width = dense ? 128 : c->hidden_size / c->num_attention_heads;
    if (!read_size(s, "head_dim", 1, width, &c->head_dim)) return false;
    if (c->head_dim != 0 && c->head_dim % 2 == 0) return true;
    if (find(s, "head_dim") != 0) return refuse(s, "head_dim", "an even number");
    q3_fail(s->error, Q3_ERROR_INPUT, "%.200s: head_dim is missing, and hidden_size / "
            "num_attention_heads is not even", s->j->name);
    return false;
}

/* Sizes that must fit each other, and tensors whose bytes must fit 63 bits. */
static bool check_sizes(const source *s, const q3_config *c)
{
    const struct { const char *key; uint64_t rows, cols, experts; } tensor[] = {
        {"vocab_size", c->vocab_size, c->hidden_size, 1},
        {"intermediate_size", c->intermediate_size, c->hidden_size, 1},
        {"num_attention_heads", c->num_attention_heads * (uint64_t)c->head_dim, c->hidden_size, 1},
        {"moe_intermediate_size", 2 * (uint64_t)c->moe_intermediate_size, c->hidden_size,
         c->num_experts}};
    if (c->num_attention_heads % c->num_key_value_heads != 0)
        return refuse(s, "num_attention_heads", "a multiple of num_key_value_heads");
    if (c->num_experts > 0 && c->num_experts_per_tok > c->num_experts)
        return refuse(s, "num_experts_per_tok", "at most num_experts");
    for (size_t i = 0; i < sizeof tensor / sizeof *tensor; i++) {
        uint64_t elements = tensor[i].rows > LARGEST ? UINT64_MAX : tensor[i].rows * tensor[i].cols;
        uint64_t experts = tensor[i].experts > 0 ? tensor[i].experts : 1;
        if (elements > INT64_MAX / 4 / experts)
            return refuse(s, tensor[i].key, "a smaller one: its tensors would not fit 64 bits");
    }
    return true;
}

/* Booleans, window, epsilon, padding. */
static bool read_switches(const source *s, q3_config *c)
{
    static const char eps[] = "a number with a point or an exponent, 0 or more";
    bool windowed = false, causal = true;
    uint32_t window = find_value(s, "sliding_window"), pad = find_value(s, "pad_token_id");
    double value = 0.0;
    uint64_t positive = 0;
    if (!read_bool(s, "norm_topk_prob", false, &c->norm_topk_prob) ||
        !read_bool(s, "attention_bias", false, &c->attention_bias) ||
        !read_bool(s, "tie_word_embeddings", false, &c->tie_word_embeddings) ||
        !read_bool(s, "use_sliding_window", false, &windowed) ||
        !read_bool(s, "is_causal", true, &causal))
        return false;
    if (!causal) return refuse(s, "is_causal", "true: 4.x ignores it");
    if (window != 0 && !q3_json_is_integer(s->j, window))
        return refuse(s, "sliding_window", SIZE_TEXT ", or null");
    if (c->dense && windowed)
        return refuse(s, "use_sliding_window", "false: a window in some layers is not computed");
    c->sliding_window = windowed && find(s, "sliding_window") == 0 ? 4096 : 0;
    if (windowed && window != 0 && !read_size(s, "sliding_window", 1, 0, &c->sliding_window))
        return false;
    c->rms_norm_eps = 1e-6;
    if (find(s, "rms_norm_eps") != 0 &&
        (!read_real(s, "rms_norm_eps", 0.0, FLT_MAX, eps, &c->rms_norm_eps) ||
         (q3_json_is_integer(s->j, find(s, "rms_norm_eps")) && !refuse(s, "rms_norm_eps", eps))))
        return false;
    c->pad_token_id = -1;
    if (pad == 0) return true;
    if (!q3_json_is_integer(s->j, pad) || !q3_json_double(s->j, pad, &value) ||
        !(value >= -(double)c->vocab_size && value < (double)c->vocab_size))
        return refuse(s, "pad_token_id", "an integer from -vocab_size to vocab_size - 1, or null");
    c->pad_token_id = q3_json_uint(s->j, pad, &positive)
                    ? (int64_t)positive : (int64_t)(value + (double)c->vocab_size);
    if (c->pad_token_id == (int64_t)c->vocab_size) /* from -0 */
        c->pad_token_id = 0;
    return true;
}

/* Keys that a configuration must have, must not have, or that have one value only. */
static bool check_fixed(const source *s)
{
    static const char *const absent[] = {"per_layer_config", "attention_chunk_size"};
    if (!is_string(s, find(s, "model_type"), "qwen3_moe") && !is_dense(s))
        return refuse(s, "model_type", "\"qwen3_moe\" or \"qwen3\"");
    if (find(s, "hidden_act") != 0 && !is_string(s, find(s, "hidden_act"), "silu"))
        return refuse(s, "hidden_act", "\"silu\"");
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        if (find_value(s, absent[i]) != 0) return refuse(s, absent[i], "no such key");
    return true;
}

/* Which layers of a dense model have a window: none. */
static bool check_layer_types(const source *s)
{
    uint32_t list = find_value(s, "layer_types"), value = list + 1;
    if (list == 0 || !is_dense(s)) return true; /* the other models do not know the key */
    bool all = q3_json_type_of(s->j, list) == Q3_JSON_ARRAY;
    for (uint32_t i = 0; all && i < s->j->nodes[list].count; i++, value = s->j->nodes[value].next)
        all = is_string(s, value, "full_attention");
    return all || refuse(s, "layer_types", "\"full_attention\" in every layer");
}

/* dtype (5.x) or torch_dtype (4.x); Q3_AUTO: neither. */
static bool read_dtype(const source *s, q3_dtype *dtype)
{
    static const char *const keys[] = {"dtype", "torch_dtype"};
    q3_dtype found[2] = {Q3_AUTO, Q3_AUTO};
    for (size_t k = 0; k < 2; k++) {
        uint32_t node = find_value(s, keys[k]);
        for (size_t i = 0; i < 3; i++) {
            if (is_string(s, node, q3_dtype_name((q3_dtype)i)))
                found[k] = (q3_dtype)i; /* Q3_F32, Q3_BF16, Q3_F16 */
        }
        if (node != 0 && found[k] == Q3_AUTO)
            return refuse(s, keys[k], "\"float32\", \"bfloat16\", \"float16\" or null");
    }
    if (found[0] != Q3_AUTO && found[1] != Q3_AUTO && found[0] != found[1])
        return refuse_both(s, keys[0], s, keys[1]);
    *dtype = found[0] != Q3_AUTO ? found[0] : found[1];
    return true;
}

/* For qsort: ascending. */
static int compare_sizes(const void *a, const void *b)
{
    size_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* mlp_only_layers: ascending, each once; entries that are no layer have no effect in HF. */
static q3_status read_mlp_only(const source *s, q3_config *c, size_t **list)
{
    uint32_t array = find_value(s, "mlp_only_layers"), value = array + 1;
    size_t count = 0, kept = 0;
    uint32_t given = array != 0 ? s->j->nodes[array].count : 0;
    *list = NULL;
    if (array != 0 && q3_json_type_of(s->j, array) != Q3_JSON_ARRAY) {
        refuse(s, "mlp_only_layers", "a list of integers, or null");
        return Q3_ERROR_INPUT;
    }
    size_t *layers = given > 0 ? calloc(given, sizeof *layers) : NULL;
    if (given > 0 && layers == NULL)
        return q3_no_memory(s->error, s->j->name);
    for (uint32_t i = 0; i < given; i++, value = s->j->nodes[value].next) {
        uint64_t layer = 0;
        if (!q3_json_is_integer(s->j, value)) {
            q3_json_fail(s->j, value, "mlp_only_layers", "integers", s->error);
            free(layers);
            return Q3_ERROR_INPUT;
        }
        if (q3_json_uint(s->j, value, &layer) && layer < c->num_hidden_layers)
            layers[count++] = (size_t)layer;
    }
    if (count > 0) qsort(layers, count, sizeof *layers, compare_sizes);
    for (size_t i = 0; i < count; i++) {
        if (kept == 0 || layers[i] != layers[kept - 1]) layers[kept++] = layers[i];
    }
    c->mlp_only_layers = *list = layers;
    c->mlp_only_count = kept;
    return Q3_OK;
}

/* ==== Quantisation ============================================================================ */

/* A key that Hugging Face's fp8 does not know may change what the weights are. */
static bool refuse_key(const source *s, uint32_t key)
{
    q3_json_fail(s->j, key, "quantization_config", "keys of Hugging Face's fp8 alone", s->error);
    return false;
}

/* Refuses what Hugging Face's fp8 has and this has not. */
static bool check_fp8_keys(const source *s)
{
    static const char *const known[] = {
        "quant_method", "fmt", "activation_scheme", "weight_block_size", "modules_to_not_convert",
        "scale_fmt", "dequantize" /* how Hugging Face loads, not what the file has */,
        "modules_to_convert", "ignored_layers"};
    uint32_t key = s->object + 1;
    for (uint32_t i = 0; i < s->j->nodes[s->object].count; i++, key = s->j->nodes[key + 1].next) {
        bool found = false;
        for (size_t k = 0; !found && k < sizeof known / sizeof *known; k++)
            found = q3_json_equal(s->j, key, known[k]);
        if (!found)
            return refuse_key(s, key);
    }
    if (find(s, "fmt") != 0 && !is_string(s, find(s, "fmt"), "e4m3"))
        return refuse(s, "fmt", "\"e4m3\", or no such key");
    if (find(s, "activation_scheme") != 0 &&
        !is_string(s, find(s, "activation_scheme"), "dynamic"))
        return refuse(s, "activation_scheme", "\"dynamic\": scales of activations are not read");
    if (find(s, "scale_fmt") != 0 && !is_string(s, find(s, "scale_fmt"), "float"))
        return refuse(s, "scale_fmt", "\"float\", or no such key");
    if (find_value(s, "modules_to_convert") != 0)
        return refuse(s, "modules_to_convert", "null, or no such key: 4.x ignores it");
    if (find_value(s, "ignored_layers") != 0)
        return refuse(s, "ignored_layers", "null, or no such key (modules_to_not_convert): 4.x "
                      "ignores it");
    return true;
}

/* Rows and columns that share a scale. */
static bool read_blocks(const source *s, q3_fp8 *fp8)
{
    static const char key[] = "weight_block_size";
    uint32_t list = find(s, key);
    uint64_t rows = 128, columns = 128;
    if (list != 0 && (q3_json_type_of(s->j, list) != Q3_JSON_ARRAY ||
                      s->j->nodes[list].count != 2 || !q3_json_uint(s->j, list + 1, &rows) ||
                      !q3_json_uint(s->j, list + 2, &columns) || rows == 0 || columns == 0 ||
                      rows > LARGEST || columns > LARGEST))
        return refuse(s, key, "two integers from 1 to 2147483647");
    fp8->block_rows = (size_t)rows;
    fp8->block_columns = (size_t)columns;
    return true;
}

/* Names of modules that are not quantised. 4.x looks for each as a text inside the module's name,
 * 5.x takes it as a regular expression at its beginning, or as its end. */
static q3_status read_kept(const source *s, q3_fp8 *fp8)
{
    static const char thing[] = "quantization_config.modules_to_not_convert";
    uint32_t list = find_value(s, "modules_to_not_convert"), value = list + 1;
    if (list == 0) return Q3_OK;
    if (q3_json_type_of(s->j, list) != Q3_JSON_ARRAY)
        return q3_json_fail(s->j, list, thing, "a list of names of modules, or null", s->error);
    uint32_t count = s->j->nodes[list].count;
    const q3_json_node *node = &s->j->nodes[list];
    fp8->listed = true;
    fp8->kept = calloc((size_t)count + 1, sizeof *fp8->kept);
    char *at = fp8->texts = malloc((size_t)(node->end - node->start) + 1);
    if (fp8->kept == NULL || at == NULL) return q3_no_memory(s->error, s->j->name);
    for (uint32_t i = 0; i < count; i++, value = s->j->nodes[value].next) {
        const char *name = q3_json_type_of(s->j, value) == Q3_JSON_STRING
                         ? q3_json_keep(s->j, value, &at) : NULL;
        if (name == NULL || name[0] == 0 || strpbrk(name, "*+?^$|\\()[]{}") != NULL)
            return q3_json_fail(s->j, value, thing, "names of modules: 4.x takes them as text, 5.x "
                                "as regular expressions", s->error);
        fp8->kept[fp8->kept_count++] = name;
    }
    return Q3_OK;
}

/* quantization_config: of its kinds fp8 is read. */
static q3_status read_quantization(const source *s, q3_fp8 *fp8)
{
    static const char key[] = "quantization_config";
    uint32_t node = find(s, key);
    source in = {s->j, node, "quantization_config.", s->error};
    if (node == 0) return Q3_OK;
    if (q3_json_type_of(s->j, node) != Q3_JSON_OBJECT)
        return q3_json_fail(s->j, node, key, "an object, or no such key", s->error);
    if (!is_string(s, find(&in, "quant_method"), "fp8"))
        return q3_json_fail(s->j, find(&in, "quant_method"), "quantization_config.quant_method",
                            "\"fp8\": no other quantised layout of a model folder is read",
                            s->error);
    fp8->used = true;
    if (!check_fp8_keys(&in) || !read_blocks(&in, fp8)) return Q3_ERROR_INPUT;
    return read_kept(&in, fp8);
}

/* Whether a module's name begins with what 5.x takes as a regular expression. */
static bool begins_with(const char *module, const char *pattern)
{
    for (; *pattern != 0; module++, pattern++)
        if (*module == 0 || (*pattern != *module && *pattern != '.')) return false;
    return true;
}

bool q3_fp8_keeps(const q3_fp8 *fp8, const char *module, bool version_5)
{
    if (!fp8->listed) return strcmp(module, "lm_head") == 0;
    for (size_t i = 0; i < fp8->kept_count; i++) {
        const char *name = fp8->kept[i];
        size_t length = strlen(module), end = strlen(name);
        bool found = version_5 ? begins_with(module, name) ||
                                 (end <= length && strcmp(module + (length - end), name) == 0)
                               : strstr(module, name) != NULL;
        if (found) return true;
    }
    return false;
}

/* ==== The configuration as a line of JSON ===================================================== */

/* A comma unless it is the first, and the key. */
static void put_key(q3_text *t, const char *key)
{
    q3_text_add(t, t->size > 0 && t->data[t->size - 1] != '{' ? ",\"" : "\"");
    q3_text_add(t, key);
    q3_text_add(t, "\":");
}

static void put_uint(q3_text *t, const char *key, uint64_t value)
{
    put_key(t, key);
    q3_text_uint(t, value);
}

static void put_bool(q3_text *t, const char *key, bool value)
{
    put_key(t, key);
    q3_text_add(t, value ? "true" : "false");
}

/* given false: null. */
static void put_real(q3_text *t, const char *key, bool given, double value)
{
    put_key(t, key);
    if (given)
        q3_text_real(t, value);
    else
        q3_text_add(t, "null");
}

/* null for the default type; keys in ascending order. */
static void put_rope_scaling(q3_text *t, const q3_rope *r)
{
    bool yarn = r->type == Q3_ROPE_YARN, llama3 = r->type == Q3_ROPE_LLAMA3;
    put_key(t, "rope_scaling");
    if (r->type == Q3_ROPE_DEFAULT) {
        q3_text_add(t, "null");
        return;
    }
    q3_text_add(t, "{");
    if (yarn) {
        put_real(t, "attention_factor", r->has_attention_factor, r->attention_factor);
        put_real(t, "beta_fast", true, r->beta_fast);
        put_real(t, "beta_slow", true, r->beta_slow);
    }
    put_real(t, "factor", true, r->factor);
    if (llama3) {
        put_real(t, "high_freq_factor", true, r->high_freq_factor);
        put_real(t, "low_freq_factor", true, r->low_freq_factor);
    }
    if (yarn) {
        put_real(t, "mscale", r->mscale != 0.0, r->mscale);
        put_real(t, "mscale_all_dim", r->mscale_all_dim != 0.0, r->mscale_all_dim);
    }
    if (yarn || llama3)
        put_uint(t, "original_max_position_embeddings",
                 (uint64_t)r->original_max_position_embeddings);
    put_key(t, "rope_type");
    q3_text_add(t, "\"");
    q3_text_add(t, q3_rope_name(r->type));
    q3_text_add(t, "\"");
    if (yarn) put_bool(t, "truncate", r->truncate);
    q3_text_add(t, "}");
}

/* What Python's json.dumps(config, sort_keys=True, separators=(",", ":")) writes for these keys:
 *   integers  vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
 *             num_key_value_heads head_dim max_position_embeddings num_experts num_experts_per_tok
 *             moe_intermediate_size decoder_sparse_step
 *   floats    rms_norm_eps rope_theta, also where the file has an integer: 10000 becomes 10000.0
 *   booleans  norm_topk_prob attention_bias tie_word_embeddings; use_sliding_window: is there one
 *   others    mlp_only_layers: ascending, each once, layers that exist; sliding_window: null if
 *             none; hidden_act "silu"; model_type "qwen3_moe" or "qwen3"; rope_scaling
 * rope_scaling is null for the default type. Else it has rope_type, factor (float), and for
 *   yarn      attention_factor, mscale, mscale_all_dim (float, null where not given), beta_fast,
 *             beta_slow (float), original_max_position_embeddings (integer), truncate
 *   llama3    low_freq_factor, high_freq_factor (float), original_max_position_embeddings
 * all after defaults. NULL: no memory. */
char *q3_config_json(const q3_config *c)
{
    q3_text t = {0};
    q3_text_add(&t, "{");
    put_bool(&t, "attention_bias", c->attention_bias);
    put_uint(&t, "decoder_sparse_step", c->decoder_sparse_step);
    put_uint(&t, "head_dim", c->head_dim);
    put_key(&t, "hidden_act");
    q3_text_add(&t, "\"silu\"");
    put_uint(&t, "hidden_size", c->hidden_size);
    put_uint(&t, "intermediate_size", c->intermediate_size);
    put_uint(&t, "max_position_embeddings", c->max_position_embeddings);
    put_key(&t, "mlp_only_layers");
    q3_text_add(&t, "[");
    for (size_t i = 0; i < c->mlp_only_count; i++) {
        q3_text_add(&t, i > 0 ? "," : "");
        q3_text_uint(&t, c->mlp_only_layers[i]);
    }
    q3_text_add(&t, "]");
    put_key(&t, "model_type");
    q3_text_add(&t, c->dense ? "\"qwen3\"" : "\"qwen3_moe\"");
    put_uint(&t, "moe_intermediate_size", c->moe_intermediate_size);
    put_bool(&t, "norm_topk_prob", c->norm_topk_prob);
    put_uint(&t, "num_attention_heads", c->num_attention_heads);
    put_uint(&t, "num_experts", c->num_experts);
    put_uint(&t, "num_experts_per_tok", c->num_experts_per_tok);
    put_uint(&t, "num_hidden_layers", c->num_hidden_layers);
    put_uint(&t, "num_key_value_heads", c->num_key_value_heads);
    put_real(&t, "rms_norm_eps", true, c->rms_norm_eps);
    put_rope_scaling(&t, &c->rope);
    put_real(&t, "rope_theta", true, c->rope.rope_theta);
    put_key(&t, "sliding_window");
    if (c->sliding_window > 0)
        q3_text_uint(&t, c->sliding_window);
    else
        q3_text_add(&t, "null");
    put_bool(&t, "tie_word_embeddings", c->tie_word_embeddings);
    put_bool(&t, "use_sliding_window", c->sliding_window > 0);
    put_uint(&t, "vocab_size", c->vocab_size);
    q3_text_add(&t, "}");
    return t.data;
}

q3_status q3_config_read(q3_config_file *file, const q3_json *j, q3_error *error)
{
    q3_config_file f = {0};
    source s = {j, 0, "", error};
    if (q3_json_type_of(j, 0) != Q3_JSON_OBJECT)
        return q3_json_fail(j, 0, "file", "a JSON object", error);
    if (!check_fixed(&s) || !check_layer_types(&s) || !read_sizes(&s, &f.config) ||
        !check_sizes(&s, &f.config) ||
        !read_switches(&s, &f.config) || !read_dtype(&s, &f.dtype) || !read_rope(&s, &f.config))
        return Q3_ERROR_INPUT;
    q3_status status = read_mlp_only(&s, &f.config, &f.mlp_only_layers);
    if (status == Q3_OK) status = read_quantization(&s, &f.fp8);
    if (status == Q3_OK) f.json = q3_config_json(&f.config);
    if (status == Q3_OK && f.json == NULL) status = q3_no_memory(error, j->name);
    if (status == Q3_OK)
        *file = f;
    else
        q3_config_free(&f);
    return status;
}

void q3_config_free(q3_config_file *file)
{
    free(file->mlp_only_layers);
    free(file->fp8.kept);
    free(file->fp8.texts);
    free(file->json);
    *file = (q3_config_file){0};
}
