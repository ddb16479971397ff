/* report.c - findings as lines of JSON, and lines of JSON as the text that `check`, `diff` and `report` print. */
#include "json.h"
#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== JSON out ================================================================================= */

/* A string with quotes; control bytes, which names from a file may hold, are escaped. */
void report_string(q3_text *out, const char *text)
{
    q3_text_add(out, "\"");
    for (const char *p = text; *p != 0; p++) {
        char piece[8] = {*p, 0};
        if (*p == '"' || *p == '\\')
            snprintf(piece, sizeof piece, "\\%c", *p);
        else if ((unsigned char)*p < 0x20 || *p == '<')
            snprintf(piece, sizeof piece, "\\u%04x", (unsigned)*p);
        q3_text_add(out, piece);
    }
    q3_text_add(out, "\"");
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

static void put_text(q3_text *out, const char *key, const char *text)
{
    put_key(out, key);
    if (text != NULL)
        report_string(out, text);
    else
        q3_text_add(out, "null");
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

/* Three digits are enough for a bar. */
static void put_profile(q3_text *out, const char *key, const float *values, size_t count)
{
    char digits[32];
    put_key(out, key);
    q3_text_add(out, "[");
    for (size_t i = 0; i < count; i++) {
        snprintf(digits, sizeof digits, "%s%.3g", i > 0 ? "," : "", (double)values[i]);
        q3_text_add(out, digits);
    }
    q3_text_add(out, "]");
}

void report_run(q3_text *out, const judged_run *run)
{
    q3_text_add(out, "{\"run\":{\"format\":\"qwen3moe-report-1\"");
    put_text(out, "model", run->model);
    put_text(out, "file", run->file);
    put_text(out, "dtype", dtype_name(run->dtype));
    put_count(out, "tokens", run->T);
    put_count(out, "start", run->start);
    put_count(out, "num_hidden_layers", run->layers);
    put_count(out, "first_layer", run->first_layer);
    put_count(out, "end_layer", run->end_layer);
    put_count(out, "free", run->free_running);
    put_count(out, "strict", run->strict);
    put_text(out, "accumulate", run->accumulate);
    put_text(out, "kv", run->kv);
    put_count(out, "unknown", run->unknown);
    put_text(out, "unknown_name", run->unknown_name);
    q3_text_add(out, "}}\n");
}

/* The numbers of a finding, for writing and reading. */
#define COUNTS(X) \
    X(layer) X(elements) X(judged) X(differ) X(over_1_ulp) X(outside) X(worst_token) X(worst_channel) X(near_ties) \
    X(wrong_sets) X(other_order)
#define REALS(X) \
    X(expected) X(max_ulp) X(max_ours) X(max_theirs) X(max_bound_ratio) X(relative_l2) X(gain) X(offset)

void report_finding(q3_text *out, const finding *f)
{
    char name[Q3_TAP_NAME_SIZE];
    q3_text_add(out, "{\"tap\":");
    report_string(out, f->name);
    put_text(out, "verdict", verdict_names[f->verdict]);
    put_text(out, "given_as", f->given_as);
    put_text(out, "note", f->note);
    put_text(out, "reason", f->reason);
    put_text(out, "looks_like", f->looks_like[0] != 0 ? f->looks_like : NULL);
    put_place(out, "shape", f->shape, f->rank);
#define PUT(field) put_count(out, #field, f->field);
    COUNTS(PUT)
#undef PUT
#define PUT(field) put_key(out, #field), put_real(out, f->field);
    REALS(PUT)
#undef PUT
    put_place(out, "max_at", f->max_at, f->rank);
    put_key(out, "bad");
    if (f->has_bad) {
        q3_text_add(out, "{\"ours\":");
        put_real(out, f->bad_ours);
        put_key(out, "theirs"), put_real(out, f->bad_theirs);
        put_key(out, "ulp"), put_real(out, f->bad_ulp);
        put_key(out, "bound_ulp"), put_real(out, f->bad_bound_ulp);
        put_place(out, "at", f->bad_at, f->rank);
        q3_text_add(out, "}");
    } else {
        q3_text_add(out, "null");
    }
    put_key(out, "operators");
    q3_text_add(out, "[");
    for (size_t i = 0; i < f->between_count; i++) {
        q3_tap_name(name, f->between[i], f->layer);
        if (i > 0) q3_text_add(out, ",");
        report_string(out, name);
    }
    q3_text_add(out, "]");
    put_profile(out, "token_profile", f->token_profile, f->token_bins);
    put_profile(out, "channel_profile", f->channel_profile, f->channel_bins);
    put_profile(out, "margins", f->margins, f->margin_bins);
    q3_text_add(out, "}\n");
}

/* ==== JSON in ================================================================================== */

/* One line being read; the first key that is missing or of another type is remembered. */
typedef struct reader {
    q3_json json;
    const char *bad_key;
} reader;

static uint32_t get(reader *r, uint32_t object, const char *key)
{
    uint32_t node = q3_json_find(&r->json, object, key);
    if (node == 0 && r->bad_key == NULL) r->bad_key = key;
    return node;
}

static void refuse(reader *r, const char *key)
{
    if (r->bad_key == NULL) r->bad_key = key;
}

static uint64_t get_count(reader *r, uint32_t object, const char *key)
{
    uint64_t value = 0;
    uint32_t node = get(r, object, key);
    if (node != 0 && !q3_json_uint(&r->json, node, &value)) refuse(r, key);
    return value;
}

static double real_of(reader *r, uint32_t node, const char *key)
{
    static const char *const names[] = {"nan", "inf", "-inf"};
    const double zero = q3_log(1);
    double value = 0;
    if (node == 0 || q3_json_double(&r->json, node, &value)) return value;
    for (int i = 0; i < 3; i++)
        if (q3_json_equal(&r->json, node, names[i])) return i == 0 ? zero / zero : (i == 1 ? 1 : -1) / zero;
    refuse(r, key);
    return 0;
}

/* A string in new memory; NULL for null. */
static char *get_text(reader *r, uint32_t object, const char *key)
{
    uint32_t node = get(r, object, key);
    if (node == 0 || q3_json_type_of(&r->json, node) == Q3_JSON_NULL) return NULL;
    if (q3_json_type_of(&r->json, node) != Q3_JSON_STRING) {
        refuse(r, key);
        return NULL;
    }
    char *text = malloc(q3_json_string(&r->json, node, NULL) + 1);
    if (text == NULL) return NULL;
    text[q3_json_string(&r->json, node, (uint8_t *)text)] = 0;
    return text;
}

static void get_fixed(reader *r, uint32_t object, const char *key, char *out, size_t size)
{
    char *text = get_text(r, object, key);
    snprintf(out, size, "%s", text != NULL ? text : "");
    free(text);
}

static size_t get_place(reader *r, uint32_t object, const char *key, size_t place[3])
{
    uint32_t node = get(r, object, key), count = node != 0 ? r->json.nodes[node].count : 0;
    if (node == 0) return 0;
    if (q3_json_type_of(&r->json, node) != Q3_JSON_ARRAY || count > 3) {
        refuse(r, key);
        return 0;
    }
    uint32_t child = node + 1;
    for (uint32_t i = 0; i < count; i++, child = r->json.nodes[child].next) {
        uint64_t value = 0;
        if (!q3_json_uint(&r->json, child, &value)) refuse(r, key);
        place[i] = (size_t)value;
    }
    return count;
}

static size_t get_profile(reader *r, uint32_t object, const char *key, float *values)
{
    uint32_t node = get(r, object, key), count = node != 0 ? r->json.nodes[node].count : 0;
    if (node == 0) return 0;
    if (q3_json_type_of(&r->json, node) != Q3_JSON_ARRAY || count > PROFILE_BINS) {
        refuse(r, key);
        return 0;
    }
    uint32_t child = node + 1;
    for (uint32_t i = 0; i < count; i++, child = r->json.nodes[child].next)
        values[i] = (float)real_of(r, child, key);
    return count;
}

static void get_operators(reader *r, finding *f)
{
    uint32_t node = get(r, 0, "operators"), count = node != 0 ? r->json.nodes[node].count : 0, child = node + 1;
    if (node != 0 && (q3_json_type_of(&r->json, node) != Q3_JSON_ARRAY || count > Q3_TAP_COUNT)) {
        refuse(r, "operators");
        return;
    }
    for (uint32_t i = 0; i < count; i++, child = r->json.nodes[child].next) {
        uint8_t name[512];
        q3_tap_id id = Q3_TAP_COUNT;
        size_t layer, length = r->json.nodes[child].end - r->json.nodes[child].start;
        bool text = q3_json_type_of(&r->json, child) == Q3_JSON_STRING && length < sizeof name;
        if (text) name[q3_json_string(&r->json, child, name)] = 0;
        if (!text || !q3_tap_find((const char *)name, &id, &layer)) {
            refuse(r, "operators");
            return;
        }
        f->between[f->between_count++] = id;
    }
}

static void read_bad(reader *r, finding *f)
{
    uint32_t bad = get(r, 0, "bad");
    if (bad == 0 || q3_json_type_of(&r->json, bad) == Q3_JSON_NULL) return;
    if (q3_json_type_of(&r->json, bad) != Q3_JSON_OBJECT) {
        refuse(r, "bad");
        return;
    }
    f->has_bad = true;
    f->bad_ours = real_of(r, get(r, bad, "ours"), "ours");
    f->bad_theirs = real_of(r, get(r, bad, "theirs"), "theirs");
    f->bad_ulp = real_of(r, get(r, bad, "ulp"), "ulp");
    f->bad_bound_ulp = real_of(r, get(r, bad, "bound_ulp"), "bound_ulp");
    get_place(r, bad, "at", f->bad_at);
}

static void read_finding(reader *r, finding *f)
{
    char said[16];
    memset(f, 0, sizeof *f);
    f->name = get_text(r, 0, "tap");
    if (f->name == NULL) refuse(r, "tap");
    get_fixed(r, 0, "verdict", said, sizeof said);
    int v = 0;
    while (v < VERDICT_COUNT && strcmp(said, verdict_names[v]) != 0) v++;
    if (v == VERDICT_COUNT) refuse(r, "verdict");
    f->verdict = v < VERDICT_COUNT ? (verdict)v : VERDICT_MISSING;
    f->given_as = get_text(r, 0, "given_as");
    get_fixed(r, 0, "note", f->note, sizeof f->note);
    get_fixed(r, 0, "reason", f->reason, sizeof f->reason);
    get_fixed(r, 0, "looks_like", f->looks_like, sizeof f->looks_like);
    f->rank = get_place(r, 0, "shape", f->shape);
#define GET(field) f->field = get_count(r, 0, #field);
    COUNTS(GET)
#undef GET
#define GET(field) f->field = real_of(r, get(r, 0, #field), #field);
    REALS(GET)
#undef GET
    get_place(r, 0, "max_at", f->max_at);
    read_bad(r, f);
    get_operators(r, f);
    f->token_bins = get_profile(r, 0, "token_profile", f->token_profile);
    f->channel_bins = get_profile(r, 0, "channel_profile", f->channel_profile);
    f->margin_bins = get_profile(r, 0, "margins", f->margins);
}

static void read_run(reader *r, uint32_t run, judged_run *out)
{
    char dtype[16];
    memset(out, 0, sizeof *out);
    out->model = get_text(r, run, "model");
    out->file = get_text(r, run, "file");
    get_fixed(r, run, "dtype", dtype, sizeof dtype);
    out->dtype = Q3_AUTO;
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++)
        if (strcmp(dtype, dtype_name(d)) == 0) out->dtype = d;
    if (out->dtype == Q3_AUTO || out->model == NULL || out->file == NULL) refuse(r, "run");
    out->T = get_count(r, run, "tokens");
    out->start = get_count(r, run, "start");
    out->layers = get_count(r, run, "num_hidden_layers");
    out->first_layer = get_count(r, run, "first_layer");
    out->end_layer = get_count(r, run, "end_layer");
    out->free_running = get_count(r, run, "free") != 0;
    out->strict = get_count(r, run, "strict") != 0;
    out->accumulate = get_text(r, run, "accumulate");
    out->kv = get_text(r, run, "kv");
    out->unknown = get_count(r, run, "unknown");
    out->unknown_name = get_text(r, run, "unknown_name");
    if (out->accumulate == NULL || out->kv == NULL) refuse(r, "run");
}

/* ==== Merging ================================================================================== */

static void finding_free(finding *f)
{
    free((void *)(uintptr_t)f->name);
    free((void *)(uintptr_t)f->given_as);
}

static void run_free(judged_run *run)
{
    free((void *)(uintptr_t)run->model);
    free((void *)(uintptr_t)run->file);
    free((void *)(uintptr_t)run->accumulate);
    free((void *)(uintptr_t)run->kv);
    free((void *)(uintptr_t)run->unknown_name);
}

void report_close(report *r)
{
    for (size_t i = 0; i < r->count; i++) finding_free(&r->entries[i].f);
    if (r->has_run) run_free(&r->run);
    free(r->entries);
    free(r->covered);
    memset(r, 0, sizeof *r);
}

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static bool same_run(const judged_run *a, const judged_run *b)
{
    return same_text(a->model, b->model) && same_text(a->file, b->file) && a->dtype == b->dtype && a->T == b->T &&
           a->start == b->start && a->layers == b->layers && a->free_running == b->free_running &&
           a->strict == b->strict && same_text(a->accumulate, b->accumulate) && same_text(a->kv, b->kv) &&
           a->unknown == b->unknown && same_text(a->unknown_name, b->unknown_name);
}

static q3_status take_run(report *r, reader *in, uint32_t node, size_t line, q3_error *error)
{
    judged_run run;
    read_run(in, node, &run);
    if (in->bad_key == NULL && !r->has_run) {
        r->run = run;
        r->has_run = true;
        r->covered = calloc(run.layers + 1, sizeof *r->covered);
        if (r->covered == NULL) return fail(error, Q3_ERROR_MEMORY, "no memory");
    } else {
        bool same = in->bad_key == NULL && same_run(&r->run, &run);
        if (in->bad_key == NULL && !same)
            fail(error, Q3_ERROR_INPUT, "%s: line %zu: found another run (model, file, dtype or options), expected "
                 "parts of one", r->name, line);
        run_free(&run);
        if (in->bad_key == NULL && !same) return Q3_ERROR_INPUT;
    }
    for (size_t i = run.first_layer; in->bad_key == NULL && i < run.end_layer && i < r->run.layers; i++)
        r->covered[i] = true;
    return Q3_OK;
}

static q3_status take_finding(report *r, reader *in, const char *text, size_t length, q3_error *error)
{
    if (r->count == r->room) {
        size_t room = 2 * r->room + 256;
        report_entry *grown = realloc(r->entries, room * sizeof *grown);
        if (grown == NULL) return fail(error, Q3_ERROR_MEMORY, "%s: no memory for %zu lines", r->name, room);
        r->entries = grown;
        r->room = room;
    }
    report_entry *e = &r->entries[r->count];
    read_finding(in, &e->f);
    e->line = text;
    e->length = length;
    e->order = r->count;
    q3_tap_id id = Q3_TAP_COUNT;
    size_t layer = 0;
    e->known = in->bad_key == NULL && q3_tap_find(e->f.name, &id, &layer);
    e->id = id;
    bool head = id == Q3_TAP_NORM || id == Q3_TAP_LM_HEAD;
    e->rank = !e->known ? SIZE_MAX : id <= Q3_TAP_SIN ? 0 : head ? SIZE_MAX - 1 : layer + 1;
    r->count++;
    return Q3_OK;
}

static q3_status take_line(report *r, const char *text, size_t length, size_t line, q3_error *error)
{
    reader in = {.bad_key = NULL};
    q3_error inner;
    q3_status status = q3_json_parse(&in.json, "JSON", (const uint8_t *)text, length, &inner);
    if (status != Q3_OK) return fail(error, status, "%s: line %zu: %.300s", r->name, line, inner.text);
    uint32_t run = q3_json_find(&in.json, 0, "run");
    if (q3_json_type_of(&in.json, 0) != Q3_JSON_OBJECT)
        refuse(&in, "tap");
    else
        status = run != 0 ? take_run(r, &in, run, line, error) : take_finding(r, &in, text, length, error);
    if (status == Q3_OK && in.bad_key != NULL)
        status = fail(error, Q3_ERROR_INPUT, "%s: line %zu: found no %s of the right type, expected a line of a report",
                      r->name, line, in.bad_key);
    q3_json_free(&in.json);
    return status;
}

static int by_computation(const void *a, const void *b)
{
    const report_entry *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->known && x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

/* Sorted; equal lines once. */
static q3_status merge(report *r, q3_error *error)
{
    size_t kept = 0;
    if (r->count > 0) qsort(r->entries, r->count, sizeof *r->entries, by_computation);
    for (size_t i = 0; i < r->count; i++) {
        report_entry *e = &r->entries[i], *before = kept > 0 ? &r->entries[kept - 1] : NULL;
        if (before != NULL && strcmp(before->f.name, e->f.name) == 0) {
            bool equal = before->length == e->length && memcmp(before->line, e->line, e->length) == 0;
            if (!equal)
                return fail(error, Q3_ERROR_INPUT, "%s: %.200s: found two findings that differ, expected one", r->name,
                            e->f.name);
            finding_free(&e->f);
            memset(&e->f, 0, sizeof e->f);
            continue;
        }
        if (kept != i) {
            r->entries[kept] = *e;
            memset(&e->f, 0, sizeof e->f);
        }
        kept++;
    }
    r->count = kept;
    return Q3_OK;
}

q3_status report_read(report *r, const char *name, const char *lines, size_t length, q3_error *error)
{
    q3_status status = Q3_OK;
    memset(r, 0, sizeof *r);
    r->name = name;
    for (size_t at = 0, line = 1; at < length && status == Q3_OK; line++) {
        const char *end = memchr(lines + at, '\n', length - at);
        size_t n = end != NULL ? (size_t)(end - lines) - at : length - at;
        if (n > 0) status = take_line(r, lines + at, n, line, error);
        at += n + 1;
    }
    if (status == Q3_OK && !r->has_run)
        status = fail(error, Q3_ERROR_INPUT, "%s: found no line of a run, expected reports that check or diff wrote", name);
    if (status == Q3_OK) status = merge(r, error);
    if (status != Q3_OK) report_close(r);
    return status;
}

/* ==== What it says ============================================================================= */

const char report_glyphs[VERDICT_COUNT] = {
    [VERDICT_EXACT] = '=', [VERDICT_WITHIN] = '~', [VERDICT_ROUNDING] = 'r', [VERDICT_NEAR_TIE] = 't',
    [VERDICT_DIFFERS] = 'X', [VERDICT_NON_FINITE] = 'N', [VERDICT_MISSING] = '.', [VERDICT_SHAPE] = 'S',
    [VERDICT_UNJUDGED] = '?',
};

bool report_is_bad(const report *r, const finding *f)
{
    return f->verdict == VERDICT_DIFFERS || f->verdict == VERDICT_NON_FINITE || f->verdict == VERDICT_SHAPE ||
           (r->run.strict && f->verdict == VERDICT_ROUNDING) ||
           (r->run.layers == 0 && f->verdict == VERDICT_MISSING); /* a diff */
}

const report_entry *report_first_bad(const report *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (report_is_bad(r, &r->entries[i].f)) return &r->entries[i];
    return NULL;
}

outcome report_outcome(const report *r)
{
    if (report_first_bad(r) != NULL) return OUTCOME_DIFFERS;
    if (r->run.layers == 0) return OUTCOME_AGREES;
    for (size_t i = 0; i < r->count; i++)
        if (r->entries[i].f.verdict != VERDICT_MISSING && r->entries[i].f.verdict != VERDICT_UNJUDGED)
            return OUTCOME_AGREES;
    return OUTCOME_UNJUDGED;
}

void report_short(q3_text *out, double value)
{
    char digits[32];
    if (value - value != 0)
        snprintf(digits, sizeof digits, "%s", value != value ? "nan" : value > 0 ? "inf" : "-inf");
    else if (value >= 0x1p100) /* a step to what is not finite */
        snprintf(digits, sizeof digits, "inf");
    else
        snprintf(digits, sizeof digits, "%.3g", value);
    q3_text_add(out, digits);
}

static void add_number(q3_text *out, const char *before, uint64_t value)
{
    q3_text_add(out, before);
    q3_text_uint(out, value);
}

void report_place(q3_text *out, const report_entry *e, const size_t place[3])
{
    bool scores = e->known && (e->id == Q3_TAP_SCORES || e->id == Q3_TAP_PROBS);
    bool expert = e->known && e->id >= Q3_TAP_EXPERTS_GATE_PROJ && e->id <= Q3_TAP_EXPERTS_DOWN_PROJ;
    bool slot = e->known && (e->id == Q3_TAP_TOPK_INDICES || e->id == Q3_TAP_TOPK_WEIGHTS);
    add_number(out, "token ", place[0]);
    if (e->f.rank == 2) add_number(out, slot ? ", slot " : ", channel ", place[1]);
    if (e->f.rank < 3) return;
    add_number(out, expert ? ", slot " : ", head ", place[1]);
    add_number(out, scores ? ", key " : ", channel ", place[2]);
}

/* Names without the layer, after the first one's. */
static void add_operators(q3_text *out, const finding *f)
{
    char name[Q3_TAP_NAME_SIZE];
    for (size_t i = 0; i < f->between_count; i++) {
        q3_tap_name(name, f->between[i], f->layer);
        const char *rest = strncmp(name, "model.layers.", 13) == 0 ? strchr(name + 13, '.') + 1 : name;
        q3_text_add(out, i == 0 ? "" : ", ");
        q3_text_add(out, rest);
    }
}

void report_sentence(q3_text *out, const report *r)
{
    const report_entry *e = report_first_bad(r);
    size_t roundings = 0;
    if (e != NULL) {
        const finding *f = &e->f;
        q3_text_add(out, f->name);
        q3_text_add(out, f->verdict == VERDICT_SHAPE ? " has another shape: " : f->verdict == VERDICT_NON_FINITE
                         ? " is not finite where ours is: " : f->verdict == VERDICT_ROUNDING
                         ? " is rounded elsewhere: " : f->verdict == VERDICT_MISSING
                         ? " is missing: " : r->run.layers == 0 ? " differs: " : " is wrong: ");
        q3_text_add(out, f->reason);
        if (f->between_count > 0) {
            q3_text_add(out, "; judged together with ");
            add_operators(out, f);
        }
        if (f->looks_like[0] != 0) {
            q3_text_add(out, "; looks like ");
            q3_text_add(out, f->looks_like);
        }
        return;
    }
    for (size_t i = 0; i < r->count; i++) roundings += r->entries[i].f.verdict == VERDICT_ROUNDING;
    if (roundings > 0) {
        q3_text_uint(out, roundings);
        q3_text_add(out, roundings == 1 ? " tensor is" : " tensors are");
        q3_text_add(out, " rounded elsewhere, within the bound; --strict counts that as a difference");
    } else if (r->run.layers == 0) {
        q3_text_add(out, "both files hold the same tensors with equal values");
    } else {
        q3_text_add(out, report_outcome(r) == OUTCOME_AGREES ? "every tensor that could be judged is within its bound"
                                                             : "no tensor could be judged");
    }
}

/* ==== Text ===================================================================================== */

static void add_header(q3_text *out, const report *r)
{
    const judged_run *run = &r->run;
    q3_text_add(out, run->layers == 0 ? "first    " : "model    ");
    q3_text_add(out, run->model);
    q3_text_add(out, run->layers == 0 ? "\nsecond   " : "\nfile     ");
    q3_text_add(out, run->file);
    q3_text_add(out, "\n");
    if (run->layers == 0) return;
    q3_text_add(out, "run      ");
    q3_text_add(out, dtype_name(run->dtype));
    add_number(out, ", ", run->T);
    add_number(out, " tokens from position ", run->start);
    q3_text_add(out, run->free_running ? ", free-running" : ", teacher-forced");
    q3_text_add(out, run->strict ? ", strict" : "");
    if (run->accumulate[0] != 0) q3_text_add(out, ", --accumulate "), q3_text_add(out, run->accumulate);
    if (run->kv[0] != 0) q3_text_add(out, ", --kv "), q3_text_add(out, run->kv);
    q3_text_add(out, "\n");
    bool all = true;
    for (size_t i = 0; i < run->layers; i++) all = all && r->covered[i];
    if (!all) {
        q3_text_add(out, "layers   not judged:");
        for (size_t i = 0; i < run->layers; i++)
            if (!r->covered[i]) add_number(out, " ", i);
        q3_text_add(out, "\n");
    }
    if (run->unknown > 0) {
        add_number(out, "ignored  ", run->unknown);
        q3_text_add(out, run->unknown == 1 ? " tensor that is no tap: " : " tensors that are no taps, the first: ");
        q3_text_add(out, run->unknown_name != NULL ? run->unknown_name : "");
        q3_text_add(out, "\n");
    }
}

/* Columns of the map: taps of a layer that some layer has; dense and sparse ones share theirs. */
static const struct { q3_tap_id id, dense; const char *head; } columns[] = {
    {Q3_TAP_INPUT_LAYERNORM, Q3_TAP_COUNT, "norm"}, {Q3_TAP_Q_PROJ, Q3_TAP_COUNT, "q"},
    {Q3_TAP_K_PROJ, Q3_TAP_COUNT, "k"}, {Q3_TAP_V_PROJ, Q3_TAP_COUNT, "v"}, {Q3_TAP_Q_NORM, Q3_TAP_COUNT, "qn"},
    {Q3_TAP_K_NORM, Q3_TAP_COUNT, "kn"}, {Q3_TAP_Q_ROPE, Q3_TAP_COUNT, "qr"}, {Q3_TAP_K_ROPE, Q3_TAP_COUNT, "kr"},
    {Q3_TAP_SCORES, Q3_TAP_COUNT, "qk"}, {Q3_TAP_PROBS, Q3_TAP_COUNT, "p"}, {Q3_TAP_O_PROJ_INPUT, Q3_TAP_COUNT, "pv"},
    {Q3_TAP_O_PROJ, Q3_TAP_COUNT, "o"}, {Q3_TAP_POST_ATTENTION_INPUT, Q3_TAP_COUNT, "res"},
    {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_COUNT, "norm"}, {Q3_TAP_GATE, Q3_TAP_COUNT, "rout"},
    {Q3_TAP_ROUTER_PROBS, Q3_TAP_COUNT, "rp"}, {Q3_TAP_TOPK_INDICES, Q3_TAP_COUNT, "ids"},
    {Q3_TAP_TOPK_WEIGHTS, Q3_TAP_COUNT, "w"}, {Q3_TAP_EXPERTS_GATE_PROJ, Q3_TAP_DENSE_GATE_PROJ, "gate"},
    {Q3_TAP_EXPERTS_UP_PROJ, Q3_TAP_DENSE_UP_PROJ, "up"}, {Q3_TAP_EXPERTS_ACT_FN, Q3_TAP_DENSE_ACT_FN, "act"},
    {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, Q3_TAP_DENSE_DOWN_PROJ_INPUT, "mul"},
    {Q3_TAP_EXPERTS_DOWN_PROJ, Q3_TAP_COUNT, "down"}, {Q3_TAP_MLP, Q3_TAP_COUNT, "mlp"}, {Q3_TAP_LAYER, Q3_TAP_COUNT, "out"},
};
#define COLUMNS (sizeof columns / sizeof columns[0])

static void pad(q3_text *out, size_t count)
{
    while (count-- > 0) q3_text_add(out, " ");
}

static void add_cell(q3_text *out, const finding *f, bool colour)
{
    static const char *const colours[VERDICT_COUNT] = {
        [VERDICT_EXACT] = "32", [VERDICT_WITHIN] = "32", [VERDICT_ROUNDING] = "33", [VERDICT_NEAR_TIE] = "36",
        [VERDICT_DIFFERS] = "1;37;41", [VERDICT_NON_FINITE] = "1;37;41", [VERDICT_MISSING] = "2",
        [VERDICT_SHAPE] = "1;37;41", [VERDICT_UNJUDGED] = "2",
    };
    char glyph[2] = {f != NULL ? report_glyphs[f->verdict] : ' ', 0};
    bool paint = colour && f != NULL;
    if (paint) q3_text_add(out, "\033["), q3_text_add(out, colours[f->verdict]), q3_text_add(out, "m");
    q3_text_add(out, glyph);
    if (paint) q3_text_add(out, "\033[0m");
}

static void add_rows(q3_text *out, const report *r, bool colour)
{
    size_t i = 0;
    for (size_t layer = 0; layer < r->run.layers; layer++) {
        const finding *cells[COLUMNS] = {NULL};
        bool any = false;
        while (i < r->count && r->entries[i].rank < layer + 1) i++;
        for (; i < r->count && r->entries[i].rank == layer + 1; i++)
            for (size_t c = 0; c < COLUMNS; c++)
                if (columns[c].id == r->entries[i].id || columns[c].dense == r->entries[i].id) {
                    cells[c] = &r->entries[i].f;
                    any = true;
                }
        if (!any) continue;
        char label[24];
        snprintf(label, sizeof label, "%5zu  ", layer);
        q3_text_add(out, label);
        for (size_t c = 0; c < COLUMNS; c++) {
            add_cell(out, cells[c], colour);
            if (c + 1 < COLUMNS) pad(out, strlen(columns[c].head));
        }
        q3_text_add(out, "\n");
    }
}

static void add_map(q3_text *out, const report *r, bool colour)
{
    bool taps = false;
    for (size_t i = 0; i < r->count; i++) taps = taps || r->entries[i].known;
    if (!taps || r->run.layers == 0) return;
    q3_text_add(out, "\nlayer  ");
    for (size_t c = 0; c < COLUMNS; c++) {
        q3_text_add(out, columns[c].head);
        if (c + 1 < COLUMNS) q3_text_add(out, " ");
    }
    q3_text_add(out, "\n");
    add_rows(out, r, colour);
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (!e->known || (e->rank != 0 && e->rank != SIZE_MAX - 1)) continue;
        q3_text_add(out, "       ");
        add_cell(out, &e->f, colour);
        q3_text_add(out, " ");
        q3_text_add(out, e->f.name);
        q3_text_add(out, "\n");
    }
    q3_text_add(out, "= exact  ~ within  r rounding  t near-tie  X differs  N non-finite  S shape  ? unjudged  . missing\n");
}

static void add_share(q3_text *out, double part, double all)
{
    report_short(out, all > 0 ? 100 * part / all : 0);
    q3_text_add(out, " %");
}

static void add_figures(q3_text *out, const report_entry *e)
{
    const finding *f = &e->f;
    bool ids = e->known && e->id == Q3_TAP_TOPK_INDICES;
    if (f->has_bad) {
        q3_text_add(out, "    first outside: ");
        report_place(out, e, f->bad_at);
        q3_text_add(out, "; ours "), report_short(out, f->bad_ours);
        q3_text_add(out, ", theirs "), report_short(out, f->bad_theirs);
        if (!ids) {
            q3_text_add(out, ": "), report_short(out, f->bad_ulp);
            q3_text_add(out, " ulp, bound "), report_short(out, f->bad_bound_ulp);
        }
        q3_text_add(out, "\n");
    }
    if (ids) {
        add_number(out, "    tokens: near-ties ", f->near_ties);
        add_number(out, ", wrong sets ", f->wrong_sets);
        add_number(out, ", another order ", f->other_order);
        q3_text_add(out, "\n");
        return;
    }
    if (f->differ == 0) return;
    q3_text_add(out, "    largest: "), report_short(out, f->max_ulp);
    q3_text_add(out, " ulp at "), report_place(out, e, f->max_at);
    q3_text_add(out, "; relative L2 "), report_short(out, f->relative_l2);
    char gain[32];
    snprintf(gain, sizeof gain, "%.6g", f->gain);
    q3_text_add(out, ", gain "), q3_text_add(out, gain);
    q3_text_add(out, "\n    differ: "), add_share(out, (double)f->differ, (double)f->elements);
    if (f->judged > 0) q3_text_add(out, ", at most "), add_share(out, f->expected, (double)f->judged), q3_text_add(out, " expected");
    add_number(out, "; worst token ", f->worst_token);
    add_number(out, ", worst channel ", f->worst_channel);
    q3_text_add(out, "\n");
}

static void add_entry(q3_text *out, const report_entry *e)
{
    const finding *f = &e->f;
    char head[16];
    snprintf(head, sizeof head, "%-10s  ", verdict_names[f->verdict]);
    q3_text_add(out, head);
    q3_text_add(out, f->name);
    if (f->given_as != NULL && strcmp(f->given_as, f->name) != 0) {
        q3_text_add(out, " (as ");
        q3_text_add(out, f->given_as);
        q3_text_add(out, ")");
    }
    if (f->reason[0] != 0) q3_text_add(out, ": "), q3_text_add(out, f->reason);
    q3_text_add(out, "\n");
    if (f->note[0] != 0) q3_text_add(out, "    read as: "), q3_text_add(out, f->note), q3_text_add(out, "\n");
    if (f->verdict == VERDICT_MISSING || f->verdict == VERDICT_SHAPE) return;
    add_figures(out, e);
    if (f->between_count > 0) {
        q3_text_add(out, f->verdict == VERDICT_UNJUDGED ? "    to judge it, record too: " : "    judged together with: ");
        add_operators(out, f);
        q3_text_add(out, "\n");
    }
    if (f->looks_like[0] != 0) q3_text_add(out, "    looks like "), q3_text_add(out, f->looks_like), q3_text_add(out, "\n");
}

/* Rows of what is not as it should be; of many of one kind of tap the first three. */
static void add_table(q3_text *out, const report *r, bool all)
{
    size_t shown[Q3_TAP_COUNT + 1][VERDICT_COUNT] = {{0}}, left = 0;
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const finding *f = &r->entries[i].f;
        bool quiet = f->verdict == VERDICT_EXACT || f->verdict == VERDICT_WITHIN ||
                     (f->verdict == VERDICT_MISSING && r->run.layers != 0);
        if (!all && quiet) continue;
        if (!all && r->entries[i].known && shown[r->entries[i].id][f->verdict]++ >= 3) {
            left++;
            continue;
        }
        if (!any) q3_text_add(out, "\n");
        any = true;
        add_entry(out, &r->entries[i]);
    }
    if (left > 0) add_number(out, "and ", left), q3_text_add(out, " more of the same taps in later layers (--all shows them)\n");
}

static void add_totals(q3_text *out, const report *r)
{
    size_t counts[VERDICT_COUNT] = {0};
    bool first = true;
    for (size_t i = 0; i < r->count; i++) counts[r->entries[i].f.verdict]++;
    q3_text_add(out, "\n");
    for (size_t v = 0; v < VERDICT_COUNT; v++) {
        if (counts[v] == 0) continue;
        q3_text_add(out, first ? "" : ", ");
        q3_text_uint(out, counts[v]);
        q3_text_add(out, " ");
        q3_text_add(out, verdict_names[v]);
        first = false;
    }
    q3_text_add(out, first ? "no tensors\n" : "\n");
}

q3_status report_text(q3_text *text, outcome *result, const char *name, const char *lines, size_t length, bool all,
                      bool colour, q3_error *error)
{
    report r;
    q3_status status = report_read(&r, name, lines, length, error);
    if (status != Q3_OK) return status;
    add_header(text, &r);
    add_map(text, &r, colour);
    add_table(text, &r, all);
    add_totals(text, &r);
    report_sentence(text, &r);
    *result = report_outcome(&r);
    q3_text_add(text, *result == OUTCOME_DIFFERS ? "\ndiffers: " : *result == OUTCOME_AGREES ? "\nagrees" : "\ncould not judge");
    if (*result == OUTCOME_DIFFERS) q3_text_add(text, report_first_bad(&r)->f.name);
    q3_text_add(text, "\n");
    report_close(&r);
    return Q3_OK;
}
