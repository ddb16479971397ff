/* SPDX-License-Identifier: MIT */
/* report_lines.c - runs and findings as lines of JSON, and such lines read: MODEL.md 13. */
#include "host/json.h"
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "qwen3moe-report-1" /* what a change of it means: MODEL.md 13 */

/* ==== JSON out ================================================================================ */

/* Names may hold anything that a file or a path may. */
static void put_string(q3_text *out, const char *text)
{
    q3_text_string(out, text, strlen(text));
}

static void put_key(q3_text *out, const char *key)
{
    q3_text_add(out, ",\"");
    q3_text_add(out, key);
    q3_text_add(out, "\":");
}

/* JSON has no infinity and no NaN: strings. */
static void put_real(q3_text *out, double value)
{
    if (value - value == 0)
        q3_text_real(out, value);
    else
        q3_text_add(out, value != value ? "\"nan\"" : value > 0 ? "\"inf\"" : "\"-inf\"");
}

static void put_number(q3_text *out, const char *key, double value)
{
    put_key(out, key);
    put_real(out, value);
}

static void put_text(q3_text *out, const char *key, const char *text)
{
    put_key(out, key);
    if (text != NULL)
        put_string(out, text);
    else
        q3_text_add(out, "null");
}

/* NULL is "". */
static void put_said(q3_text *out, const char *key, const char *text)
{
    put_text(out, key, text != NULL ? text : "");
}

static void put_texts(q3_text *out, const char *key, const q3_text_list *list)
{
    put_key(out, key);
    q3_text_add(out, "[");
    for (size_t i = 0; i < list->count; i++) {
        q3_text_add(out, i > 0 ? "," : "");
        put_string(out, list->items[i]);
    }
    q3_text_add(out, "]");
}

static void put_count(q3_text *out, const char *key, uint64_t value)
{
    put_key(out, key);
    q3_text_uint(out, value);
}

static void put_place(q3_text *out, const char *key, const size_t *place, size_t rank)
{
    put_key(out, key);
    for (size_t i = 0; i < rank; i++) {
        q3_text_add(out, i == 0 ? "[" : ",");
        q3_text_uint(out, place[i]);
    }
    q3_text_add(out, rank == 0 ? "[]" : "]");
}

/* Three digits are enough for bars. */
static void put_profile(q3_text *out, const char *key, const float *values, size_t count)
{
    put_key(out, key);
    q3_text_add(out, "[");
    for (size_t i = 0; i < count; i++) {
        double value = (double)values[i];
        bool written = value < 0x1p100; /* else q3_text_digits writes inf or nan: a string */
        q3_text_add(out, i > 0 ? "," : "");
        q3_text_add(out, written ? "" : "\"");
        q3_text_digits(out, value, 3);
        q3_text_add(out, written ? "" : "\"");
    }
    q3_text_add(out, "]");
}

static void put_unknowns(q3_text *out, const q3_judged_run *run)
{
    put_key(out, "unknown_names");
    q3_text_add(out, "[");
    for (size_t i = 0; i < run->unknown_count; i++) {
        q3_text_add(out, i > 0 ? ",{\"name\":" : "{\"name\":");
        put_string(out, run->unknowns[i].name);
        put_text(out, "nearest", run->unknowns[i].nearest);
        q3_text_add(out, "}");
    }
    q3_text_add(out, "]");
}

void q3_report_put_run(q3_text *out, const q3_judged_run *run)
{
    q3_text_add(out, "{\"run\":{\"format\":\"" FORMAT "\"");
    put_text(out, "model", run->model);
    put_text(out, "file", run->file);
    put_text(out, "dtype", q3_dtype_name(run->dtype));
    put_count(out, "tokens", run->T);
    put_count(out, "start", run->start);
    put_count(out, "num_hidden_layers", run->layers);
    put_count(out, "first_layer", run->first_layer);
    put_count(out, "end_layer", run->end_layer);
    put_count(out, "free", run->free_running);
    put_count(out, "strict", run->strict);
    put_said(out, "accumulate", run->accumulate);
    put_said(out, "kv", run->kv);
    put_count(out, "unknown", run->unknown);
    put_text(out, "unknown_name", run->unknown_name);
    put_said(out, "router", run->router);
    put_said(out, "version", run->version);
    put_said(out, "command", run->command);
    put_said(out, "dtype_note", run->dtype_note);
    put_texts(out, "weights", &run->weights);
    put_texts(out, "token_text", &run->token_text);
    put_texts(out, "require", &run->require);
    put_unknowns(out, run);
    put_said(out, "side", run->side);
    q3_text_add(out, "}}\n");
}

/* The numbers of a finding, for writing and reading; SIZE: those of type size_t. */
#define COUNTS(X, SIZE) \
    SIZE(layer) X(elements) X(judged) X(differ) X(over_1_ulp) X(outside) SIZE(worst_token) \
    SIZE(worst_channel) X(near_ties) X(wrong_sets) X(other_order)
#define REALS(X) \
    X(expected) X(max_ulp) X(max_ours) X(max_theirs) X(max_bound_ratio) X(relative_l2) X(gain) \
    X(offset)

static void put_element(q3_text *out, const q3_element *e, size_t rank)
{
    q3_text_add(out, "{\"ours\":");
    put_real(out, e->ours);
    put_number(out, "theirs", e->theirs);
    put_number(out, "ulp", e->ulp);
    put_number(out, "bound_ulp", e->bound_ulp);
    put_place(out, "at", e->at, rank);
    q3_text_add(out, "}");
}

static void put_bad(q3_text *out, const q3_finding *f)
{
    put_key(out, "bad");
    if (!f->has_bad) {
        q3_text_add(out, "null");
        return;
    }
    q3_element bad = {.ours = f->bad_ours, .theirs = f->bad_theirs, .ulp = f->bad_ulp,
                      .bound_ulp = f->bad_bound_ulp};
    memcpy(bad.at, f->bad_at, sizeof bad.at);
    put_element(out, &bad, f->rank);
}

static void put_worst(q3_text *out, const q3_finding *f)
{
    put_key(out, "worst");
    q3_text_add(out, "[");
    for (size_t i = 0; i < f->worst_count; i++) {
        q3_text_add(out, i > 0 ? "," : "");
        put_element(out, &f->worst[i], f->rank);
    }
    q3_text_add(out, "]");
}

static void put_operators(q3_text *out, const q3_finding *f)
{
    char name[Q3_TAP_NAME_SIZE];
    put_key(out, "operators");
    q3_text_add(out, "[");
    for (size_t i = 0; i < f->between_count; i++) {
        q3_tap_name(name, f->between[i].id, f->between[i].layer);
        if (i > 0) q3_text_add(out, ",");
        put_string(out, name);
    }
    q3_text_add(out, "]");
}

void q3_report_put_finding(q3_text *out, const q3_finding *f)
{
    q3_text_add(out, "{\"tap\":");
    put_string(out, f->name);
    put_text(out, "verdict", q3_verdict_name(f->verdict));
    put_text(out, "given_as", f->given_as);
    put_text(out, "note", f->note);
    put_text(out, "reason", f->reason);
    put_text(out, "looks_like", f->looks_like[0] != 0 ? f->looks_like : NULL);
    put_place(out, "shape", f->shape, f->rank);
#define PUT(field) put_count(out, #field, f->field);
    COUNTS(PUT, PUT)
#undef PUT
#define PUT(field) put_number(out, #field, f->field);
    REALS(PUT)
#undef PUT
    put_place(out, "max_at", f->max_at, f->rank);
    put_bad(out, f);
    put_operators(out, f);
    put_profile(out, "token_profile", f->token_profile, f->token_bins);
    put_profile(out, "channel_profile", f->channel_profile, f->channel_bins);
    put_profile(out, "margins", f->margins, f->margin_bins);
    put_said(out, "cause", f->cause);
    put_worst(out, f);
    put_said(out, "side", f->side);
    q3_text_add(out, "}\n");
}

/* ==== JSON in ================================================================================= */

#define MOST_LAYERS 65535 /* as in config.json */
#define MOST_REQUIRED 65535

/* One line that is read. The first key that is missing, or not what it should be, is remembered, so
 * that the readers below need no status of their own; unknown keys are not looked at. */
typedef struct reader {
    q3_json json;
    q3_status status;    /* of an error that has been said */
    const char *bad_key;
    q3_error *error;
} reader;

static void refuse(reader *in, const char *key)
{
    if (in->bad_key == NULL) in->bad_key = key;
}

static void no_memory(reader *in)
{
    if (in->status == Q3_OK) in->status = q3_no_memory(in->error, in->json.name);
}

static uint64_t get_count(reader *in, uint32_t object, const char *key)
{
    uint64_t value = 0;
    uint32_t node = q3_json_find(&in->json, object, key);
    if (!q3_json_uint(&in->json, node, &value)) refuse(in, key);
    return value;
}

static size_t get_size(reader *in, uint32_t object, const char *key)
{
    uint64_t value = get_count(in, object, key);
    if (value > SIZE_MAX) refuse(in, key);
    return (size_t)value;
}

static bool get_flag(reader *in, uint32_t object, const char *key)
{
    uint64_t value = get_count(in, object, key);
    if (value > 1) refuse(in, key);
    return value == 1;
}

/* As put_real writes. The bits are given, since math.h is not needed for anything else. */
static double real_of(reader *in, uint32_t node, const char *key)
{
    static const struct { const char *name; uint64_t bits; } specials[] = {
        {"nan", 0x7FF8ull << 48}, {"inf", 0x7FF0ull << 48}, {"-inf", 0xFFF0ull << 48},
    };
    double value = 0;
    if (q3_json_double(&in->json, node, &value)) return value;
    for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++) {
        if (!q3_json_equal(&in->json, node, specials[i].name)) continue;
        memcpy(&value, &specials[i].bits, sizeof value);
        return value;
    }
    refuse(in, key);
    return 0;
}

static double get_real(reader *in, uint32_t object, const char *key)
{
    return real_of(in, q3_json_find(&in->json, object, key), key);
}

/* The string of a node, in new memory; of anything else NULL, and the key is refused. */
static char *text_of(reader *in, uint32_t node, const char *key)
{
    if (node == 0 || q3_json_type_of(&in->json, node) != Q3_JSON_STRING) {
        refuse(in, key);
        return NULL;
    }
    size_t length = q3_json_string(&in->json, node, NULL);
    char *text = malloc(length + 1);
    if (text == NULL) {
        no_memory(in);
        return NULL;
    }
    q3_json_string(&in->json, node, (uint8_t *)text);
    text[length] = 0;
    if (strlen(text) != length) refuse(in, key);
    return text;
}

/* A string, in new memory; NULL for null, if that is allowed. */
static char *get_text(reader *in, uint32_t object, const char *key, bool or_null)
{
    uint32_t node = q3_json_find(&in->json, object, key);
    bool null = node != 0 && q3_json_type_of(&in->json, node) == Q3_JSON_NULL;
    return or_null && null ? NULL : text_of(in, node, key);
}

/* A string that is copied, and cut off where it is longer than those that we write. */
static void get_fixed(reader *in, uint32_t object, const char *key, bool or_null, char *out,
                      size_t size)
{
    char *text = get_text(in, object, key, or_null);
    snprintf(out, size, "%s", text != NULL ? text : "");
    free(text);
}

/* The first of a list's *count elements, at most `most`; json.nodes[].next leads to the others. */
static uint32_t get_list(reader *in, uint32_t object, const char *key, size_t most, size_t *count)
{
    uint32_t node = q3_json_find(&in->json, object, key);
    bool list = node != 0 && q3_json_type_of(&in->json, node) == Q3_JSON_ARRAY;
    list = list && in->json.nodes[node].count <= most;
    if (!list) refuse(in, key);
    *count = list ? in->json.nodes[node].count : 0;
    return node + 1;
}

/* Keys that were added to the format: lines without them are read as if they said nothing. */
static bool is_there(reader *in, uint32_t object, const char *key)
{
    return q3_json_find(&in->json, object, key) != 0;
}

static char *get_added_text(reader *in, uint32_t object, const char *key)
{
    if (is_there(in, object, key)) return get_text(in, object, key, false);
    char *empty = calloc(1, 1);
    if (empty == NULL) no_memory(in);
    return empty;
}

static uint32_t get_added_list(reader *in, uint32_t object, const char *key, size_t most,
                               size_t *count)
{
    *count = 0;
    return is_there(in, object, key) ? get_list(in, object, key, most, count) : 0;
}

/* "", "A" or "B". */
static void get_side(reader *in, uint32_t object, char side[2])
{
    char text[3] = "";
    if (is_there(in, object, "side")) get_fixed(in, object, "side", false, text, sizeof text);
    bool known = text[0] == 0 || ((text[0] == 'A' || text[0] == 'B') && text[1] == 0);
    if (!known) refuse(in, "side");
    memcpy(side, text, 2);
}

static size_t get_place(reader *in, uint32_t object, const char *key, size_t place[3])
{
    size_t count;
    uint32_t node = get_list(in, object, key, 3, &count);
    for (size_t i = 0; i < count; i++, node = in->json.nodes[node].next) {
        uint64_t value = 0;
        if (!q3_json_uint(&in->json, node, &value) || value > SIZE_MAX) refuse(in, key);
        place[i] = (size_t)value;
    }
    return count;
}

/* A place in a tensor of this finding's shape. */
static void get_place_in(reader *in, uint32_t object, const char *key, const q3_finding *f,
                         size_t place[3])
{
    if (get_place(in, object, key, place) != f->rank) refuse(in, key);
}

static size_t get_profile(reader *in, const char *key, float values[Q3_PROFILE_BINS])
{
    size_t count;
    uint32_t node = get_list(in, 0, key, Q3_PROFILE_BINS, &count);
    for (size_t i = 0; i < count; i++, node = in->json.nodes[node].next) {
        values[i] = (float)real_of(in, node, key);
        if (values[i] < 0) refuse(in, key);
    }
    return count;
}

static void read_operators(reader *in, q3_finding *f)
{
    const size_t most = (MOST_LAYERS + 1) * Q3_TAP_COUNT;
    uint32_t node = get_list(in, 0, "operators", most, &f->between_count);
    q3_layer_tap *list = f->between_count > 0 ? calloc(f->between_count, sizeof *list) : NULL;
    f->between = list;
    if (f->between_count > 0 && list == NULL) {
        f->between_count = 0;
        no_memory(in);
    }
    for (size_t i = 0; i < f->between_count; i++, node = in->json.nodes[node].next) {
        uint8_t name[512] = {0};
        bool text = q3_json_type_of(&in->json, node) == Q3_JSON_STRING &&
                    q3_json_string(&in->json, node, NULL) < sizeof name;
        if (text) q3_json_string(&in->json, node, name);
        if (!q3_tap_find((const char *)name, &list[i].id, &list[i].layer))
            refuse(in, "operators");
    }
}

static void read_element(reader *in, uint32_t object, const q3_finding *f, q3_element *e)
{
    e->ours = get_real(in, object, "ours");
    e->theirs = get_real(in, object, "theirs");
    e->ulp = get_real(in, object, "ulp");
    e->bound_ulp = get_real(in, object, "bound_ulp");
    get_place_in(in, object, "at", f, e->at);
}

static void read_bad(reader *in, q3_finding *f)
{
    uint32_t bad = q3_json_find(&in->json, 0, "bad");
    if (bad != 0 && q3_json_type_of(&in->json, bad) == Q3_JSON_NULL) return;
    if (bad == 0 || q3_json_type_of(&in->json, bad) != Q3_JSON_OBJECT) {
        refuse(in, "bad");
        return;
    }
    q3_element element = {.at = {0}};
    read_element(in, bad, f, &element);
    f->has_bad = true;
    f->bad_ours = element.ours;
    f->bad_theirs = element.theirs;
    f->bad_ulp = element.ulp;
    f->bad_bound_ulp = element.bound_ulp;
    memcpy(f->bad_at, element.at, sizeof f->bad_at);
}

static void read_worst(reader *in, q3_finding *f)
{
    uint32_t node = get_added_list(in, 0, "worst", Q3_WORST_MOST, &f->worst_count);
    for (size_t i = 0; i < f->worst_count; i++, node = in->json.nodes[node].next) {
        if (q3_json_type_of(&in->json, node) != Q3_JSON_OBJECT)
            refuse(in, "worst");
        else
            read_element(in, node, f, &f->worst[i]);
    }
}

static q3_verdict get_verdict(reader *in)
{
    uint32_t node = q3_json_find(&in->json, 0, "verdict");
    for (q3_verdict v = 0; v < Q3_VERDICT_COUNT; v++)
        if (q3_json_equal(&in->json, node, q3_verdict_name(v))) return v;
    refuse(in, "verdict");
    return Q3_VERDICT_MISSING;
}

static void read_finding(reader *in, q3_finding *f)
{
    memset(f, 0, sizeof *f);
    f->name = get_text(in, 0, "tap", false);
    f->verdict = get_verdict(in);
    f->given_as = get_text(in, 0, "given_as", true);
    get_fixed(in, 0, "note", false, f->note, sizeof f->note);
    get_fixed(in, 0, "reason", false, f->reason, sizeof f->reason);
    get_fixed(in, 0, "looks_like", true, f->looks_like, sizeof f->looks_like);
    if (is_there(in, 0, "cause")) get_fixed(in, 0, "cause", false, f->cause, sizeof f->cause);
    f->rank = get_place(in, 0, "shape", f->shape);
#define GET(field) f->field = get_count(in, 0, #field);
#define GET_SIZE(field) f->field = get_size(in, 0, #field);
    COUNTS(GET, GET_SIZE)
#undef GET
#undef GET_SIZE
#define GET(field) f->field = get_real(in, 0, #field);
    REALS(GET)
#undef GET
    get_place_in(in, 0, "max_at", f, f->max_at);
    read_bad(in, f);
    read_worst(in, f);
    read_operators(in, f);
    f->token_bins = get_profile(in, "token_profile", f->token_profile);
    f->channel_bins = get_profile(in, "channel_profile", f->channel_profile);
    f->margin_bins = get_profile(in, "margins", f->margins);
    get_side(in, 0, f->side);
    q3_tap_id id;
    size_t layer;
    bool tap = f->name != NULL && q3_tap_find(f->name, &id, &layer);
    if (tap && f->layer != layer) refuse(in, "layer");
}

/* Another version's lines would be misread, even where all keys are there. */
static void check_format(reader *in, uint32_t run)
{
    uint32_t format = q3_json_find(&in->json, run, "format");
    if (!q3_json_equal(&in->json, format, FORMAT))
        in->status = q3_json_fail(&in->json, format, "format", FORMAT, in->error);
}

static void get_texts(reader *in, uint32_t object, const char *key, size_t most, q3_text_list *list)
{
    size_t count;
    uint32_t node = get_added_list(in, object, key, most, &count);
    list->items = count > 0 ? calloc(count, sizeof *list->items) : NULL;
    if (count > 0 && list->items == NULL) {
        no_memory(in);
        return;
    }
    list->count = count;
    for (size_t i = 0; i < count; i++, node = in->json.nodes[node].next)
        list->items[i] = text_of(in, node, key);
}

static void read_unknowns(reader *in, uint32_t run, q3_judged_run *out)
{
    size_t count;
    uint32_t node = get_added_list(in, run, "unknown_names", Q3_UNKNOWN_MOST, &count);
    q3_unknown *list = count > 0 ? calloc(count, sizeof *list) : NULL;
    if (count > 0 && list == NULL) {
        no_memory(in);
        return;
    }
    out->unknowns = list;
    out->unknown_count = count;
    for (size_t i = 0; i < count; i++, node = in->json.nodes[node].next) {
        if (q3_json_type_of(&in->json, node) != Q3_JSON_OBJECT) {
            refuse(in, "unknown_names");
            continue;
        }
        list[i].name = get_text(in, node, "name", false);
        get_fixed(in, node, "nearest", false, list[i].nearest, sizeof list[i].nearest);
    }
}

static void read_added(reader *in, uint32_t run, q3_judged_run *out)
{
    out->router = get_added_text(in, run, "router");
    out->version = get_added_text(in, run, "version");
    out->command = get_added_text(in, run, "command");
    out->dtype_note = get_added_text(in, run, "dtype_note");
    get_texts(in, run, "weights", MOST_LAYERS, &out->weights);
    get_texts(in, run, "token_text", Q3_MAX_POSITIONS, &out->token_text);
    get_texts(in, run, "require", MOST_REQUIRED, &out->require);
    read_unknowns(in, run, out);
    get_side(in, run, out->side);
    if (out->weights.count > 0 && out->weights.count != out->end_layer - out->first_layer)
        refuse(in, "weights");
    for (size_t i = 0; i < out->weights.count && out->weights.items[i] != NULL; i++)
        if (strlen(out->weights.items[i]) >= Q3_FINGERPRINT_SIZE) refuse(in, "weights");
    if (out->token_text.count > 0 && out->token_text.count != out->T) refuse(in, "token_text");
}

static void read_run(reader *in, uint32_t run, q3_judged_run *out)
{
    check_format(in, run);
    uint32_t dtype = q3_json_find(&in->json, run, "dtype");
    memset(out, 0, sizeof *out);
    out->model = get_text(in, run, "model", false);
    out->file = get_text(in, run, "file", false);
    out->dtype = Q3_AUTO;
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++)
        if (q3_json_equal(&in->json, dtype, q3_dtype_name(d))) out->dtype = d;
    if (out->dtype == Q3_AUTO) refuse(in, "dtype");
    out->T = get_size(in, run, "tokens");
    out->start = get_size(in, run, "start");
    out->layers = get_size(in, run, "num_hidden_layers");
    out->first_layer = get_size(in, run, "first_layer");
    out->end_layer = get_size(in, run, "end_layer");
    out->free_running = get_flag(in, run, "free");
    out->strict = get_flag(in, run, "strict");
    out->accumulate = get_text(in, run, "accumulate", false);
    out->kv = get_text(in, run, "kv", false);
    out->unknown = get_size(in, run, "unknown");
    out->unknown_name = get_text(in, run, "unknown_name", true);
    bool some = out->layers == 0 || out->first_layer < out->end_layer;
    if (out->layers > MOST_LAYERS) refuse(in, "num_hidden_layers");
    if (out->end_layer > out->layers || !some) refuse(in, "end_layer");
    read_added(in, run, out);
}

/* Memory of get_text, which the structs call const. */
static void free_text(const char *text)
{
    free((void *)(uintptr_t)text);
}

static void free_texts(q3_text_list *list)
{
    for (size_t i = 0; i < list->count; i++) free_text(list->items[i]);
    free(list->items);
}

void q3_report_free_finding(q3_finding *f)
{
    free_text(f->name);
    free_text(f->given_as);
    free((void *)(uintptr_t)f->between);
}

void q3_report_free_run(q3_judged_run *run)
{
    free_text(run->model);
    free_text(run->file);
    free_text(run->accumulate);
    free_text(run->kv);
    free_text(run->unknown_name);
    free_text(run->router);
    free_text(run->version);
    free_text(run->command);
    free_text(run->dtype_note);
    free_texts(&run->weights);
    free_texts(&run->token_text);
    free_texts(&run->require);
    for (size_t i = 0; i < run->unknown_count; i++) free_text(run->unknowns[i].name);
    free((void *)(uintptr_t)run->unknowns);
}

q3_status q3_report_read_line(report_line *line, const char *place, const char *text, size_t length,
                              q3_error *error)
{
    reader in = {.error = error};
    memset(line, 0, sizeof *line);
    q3_status status = q3_json_parse(&in.json, place, (const uint8_t *)text, length, error);
    if (status != Q3_OK) return status;
    uint32_t run = q3_json_find(&in.json, 0, "run");
    line->is_run = run != 0;
    if (line->is_run)
        read_run(&in, run, &line->run);
    else
        read_finding(&in, &line->f);
    if (in.status == Q3_OK && in.bad_key != NULL)
        in.status = q3_fail(error, Q3_ERROR_INPUT,
                            "%s: found no %s of the right type, expected a line of a report", place,
                            in.bad_key);
    q3_json_free(&in.json);
    if (in.status == Q3_OK) return Q3_OK;
    q3_report_free_run(&line->run);
    q3_report_free_finding(&line->f);
    return in.status;
}
