/* backend.c - the other implementation's file: whose names, which layout, which run. */
#include "judge/backend.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== The run: config, dtype, positions, tokens ============================================== */

/* The first key of ours whose value theirs does not have: texts of both, or ours NULL. Both are sorted by
 * q3_config_read, which writes equal values as equal texts. */
static q3_status compare_keys(const char *path, const q3_json *ours, const q3_json *theirs, q3_error *error)
{
    char key[64], text[2][100];
    for (uint32_t i = 0, k = 1; i < ours->nodes[0].count; i++, k = ours->nodes[k + 1].next) {
        size_t n = ours->nodes[k].end - ours->nodes[k].start - 2;
        snprintf(key, sizeof key, "%.*s", (int)n, (const char *)ours->text + ours->nodes[k].start + 1);
        uint32_t found = q3_json_find(theirs, 0, key);
        const q3_json *j[2] = {theirs, ours};
        const uint32_t node[2] = {found, k + 1};
        for (int side = 0; side < 2; side++) {
            const q3_json_node *at = &j[side]->nodes[node[side]];
            int length = node[side] == 0 ? 0 : (int)(at->end - at->start);
            snprintf(text[side], sizeof text[side], "%.*s", length, (const char *)j[side]->text + at->start);
        }
        const q3_json_node *a = &ours->nodes[k + 1], *b = &theirs->nodes[found];
        if (found != 0 && a->end - a->start == b->end - b->start &&
            memcmp(ours->text + a->start, theirs->text + b->start, a->end - a->start) == 0)
            continue;
        return q3_fail(error, Q3_ERROR_INPUT, "%s: metadata config: %s: found %s, expected %s as in the model", path,
                    key, found != 0 ? text[0] : "nothing", text[1]);
    }
    return Q3_OK;
}

/* metadata's config, if there is one, read as a config.json is: any spelling will do. */
static q3_status check_config(const backend *b, const q3_model *model, q3_error *error)
{
    const char *text = q3_tensors_metadata(b->file, "config"), *expected = q3_model_config_json(model);
    q3_json raw = {0}, ours = {0}, theirs = {0};
    q3_config_file config = {0};
    q3_error inner;
    if (text == NULL || strcmp(text, expected) == 0) return Q3_OK;
    q3_status status = q3_json_parse(&raw, "config", (const uint8_t *)text, strlen(text), &inner);
    if (status == Q3_OK) status = q3_config_read(&config, &raw, &inner);
    if (status == Q3_OK)
        status = q3_json_parse(&theirs, "config", (const uint8_t *)config.json, strlen(config.json), &inner);
    if (status == Q3_OK)
        status = q3_json_parse(&ours, "config", (const uint8_t *)expected, strlen(expected), &inner);
    if (status != Q3_OK)
        q3_fail(error, status, "%s: metadata: %.400s", b->path, inner.text);
    else
        status = compare_keys(b->path, &ours, &theirs, error);
    q3_json_free(&ours);
    q3_json_free(&theirs);
    q3_json_free(&raw);
    q3_config_free(&config);
    return status;
}

static q3_status read_dtype(backend *b, q3_error *error)
{
    const char *text = q3_tensors_metadata(b->file, "dtype");
    b->dtype = Q3_AUTO;
    if (text == NULL) return Q3_OK;
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++)
        if (strcmp(text, q3_dtype_name(d)) == 0) b->dtype = d;
    if (b->dtype != Q3_AUTO) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%s: metadata dtype: found %.40s, expected float32, bfloat16 or float16",
                b->path, text);
}

/* Integers, one a token: [T], or with axes of 1 too. Their number must be that of what was read before. */
static q3_status open_integers(backend *b, const char *name, const q3_entry **entry, q3_error *error)
{
    const q3_entry *e = *entry = q3_tensors_find(b->file, name);
    uint64_t count = 1, longest = 1;
    if (e == NULL) return Q3_OK;
    for (size_t i = 0; i < e->rank; i++) {
        count *= e->shape[i];
        longest = e->shape[i] > longest ? e->shape[i] : longest;
    }
    if (e->rank == 0 || count != longest || (e->dtype != Q3_I64 && e->dtype != Q3_I32))
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found another shape or no integers, expected integers [T]",
                    b->path, name);
    if (count > Q3_MAX_POSITIONS || (b->T != 0 && count != b->T))
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found %llu, expected %zu%s", b->path, name,
                    (unsigned long long)count, b->T != 0 ? b->T : Q3_MAX_POSITIONS,
                    b->T != 0 ? " as in input_ids" : " at most");
    b->T = (size_t)count;
    return Q3_OK;
}

static q3_status read_ids(backend *b, q3_error *error)
{
    const q3_entry *entry;
    q3_status status = open_integers(b, "input_ids", &entry, error);
    if (status != Q3_OK || entry == NULL) return status;
    b->ids = malloc(b->T * sizeof *b->ids);
    if (b->ids == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", b->T);
    for (size_t t = 0; t < b->T; t++) {
        int64_t id;
        q3_entry_integers(&id, entry, t, 1);
        if (id < 0 || (uint64_t)id >= b->config->vocab_size)
            return q3_fail(error, Q3_ERROR_INPUT, "%s: input_ids: token %zu: found %lld, expected 0 to %zu", b->path,
                        t, (long long)id, b->config->vocab_size - 1);
        b->ids[t] = (int32_t)id;
    }
    return Q3_OK;
}

static q3_status read_positions(backend *b, q3_error *error)
{
    const q3_entry *entry;
    int64_t first = 0, position;
    q3_status status = open_integers(b, "position_ids", &entry, error);
    if (status != Q3_OK || entry == NULL) return status;
    q3_entry_integers(&first, entry, 0, 1);
    if (first < 0 || (uint64_t)first > Q3_MAX_POSITIONS - b->T)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: position_ids: token 0: found %lld, expected 0 to %zu", b->path,
                    (long long)first, Q3_MAX_POSITIONS - b->T);
    for (size_t t = 1; t < b->T; t++) {
        q3_entry_integers(&position, entry, t, 1);
        if (position != first + (int64_t)t)
            return q3_fail(error, Q3_ERROR_INPUT, "%s: position_ids: token %zu: found %lld, expected %lld", b->path,
                        t, (long long)position, (long long)first + (long long)t);
    }
    if (b->has_start && b->start != (size_t)first)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: position_ids: token 0: found %lld, expected %zu as metadata's"
                    " start", b->path, (long long)first, b->start);
    b->start = (size_t)first;
    b->has_start = true;
    return Q3_OK;
}

static q3_status read_start(backend *b, q3_error *error)
{
    const char *text = q3_tensors_metadata(b->file, "start");
    if (text == NULL) return Q3_OK;
    size_t digits = strspn(text, "0123456789");
    for (size_t i = 0; i < digits && b->start < Q3_MAX_POSITIONS; i++)
        b->start = b->start * 10 + (size_t)(text[i] - '0');
    if (digits == 0 || text[digits] != 0 || b->start >= Q3_MAX_POSITIONS)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: metadata start: found %.40s, expected 0 to %zu", b->path, text,
                    Q3_MAX_POSITIONS - 1);
    b->has_start = true;
    return Q3_OK;
}

/* ==== Names ================================================================================== */

static uint64_t entry_bytes(const q3_entry *e)
{
    uint64_t n = e->dtype == Q3_F64 || e->dtype == Q3_I64 ? 8 : e->dtype == Q3_F32 || e->dtype == Q3_I32 ? 4 : 2;
    for (size_t i = 0; i < e->rank; i++) n *= e->shape[i];
    return n;
}

/* The same values twice, as a module and as what it is made of, say. */
static bool same_values(const q3_entry *a, const q3_entry *b)
{
    return a->dtype == b->dtype && a->dtype != Q3_AUTO && entry_bytes(a) == entry_bytes(b) &&
           memcmp(a->data, b->data, (size_t)entry_bytes(a)) == 0;
}

/* Gives the entry to the tap, unless a better name has it. */
static q3_status place(backend *b, const q3_entry *entry, const q3_alias *alias, q3_tap_id id, q3_error *error)
{
    char tap[Q3_TAP_NAME_SIZE];
    q3_alias other = {Q3_TAP_COUNT, 1, 0, false};
    backend_tensor *tensor = &b->tensors[alias->layer * Q3_TAP_COUNT + (size_t)id];
    if (tensor->entry != NULL) q3_tap_alias(&other, b->config, tensor->entry->name);
    if (tensor->entry == NULL || (other.weak && !alias->weak)) {
        tensor->entry = entry;
        return Q3_OK;
    }
    if (alias->weak != other.weak || (alias->count == other.count && same_values(entry, tensor->entry)))
        return Q3_OK;
    q3_tap_name(tap, id, alias->layer);
    return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.100s and %.100s, expected one tensor for %s", b->path,
                tensor->entry->name, entry->name, tap);
}

/* vLLM's and SGLang's act_fn, behind a fused gate_up_proj, multiplies too: its output is what down_proj reads. */
static void move_products(backend *b)
{
    for (size_t layer = 0; layer < b->config->num_hidden_layers; layer++) {
        backend_tensor *of = b->tensors + layer * Q3_TAP_COUNT, *act = &of[Q3_TAP_DENSE_ACT_FN];
        const q3_entry *gate = of[Q3_TAP_DENSE_GATE_PROJ].entry;
        q3_alias alias;
        if (act->entry == NULL || gate == NULL || !q3_tap_alias(&alias, b->config, gate->name) || alias.count != 2)
            continue;
        if (of[Q3_TAP_DENSE_DOWN_PROJ_INPUT].entry == NULL) of[Q3_TAP_DENSE_DOWN_PROJ_INPUT] = *act;
        act->entry = NULL;
    }
}

static q3_status find_taps(backend *b, q3_error *error)
{
    size_t L = b->config->num_hidden_layers;
    b->tensors = calloc(L * Q3_TAP_COUNT, sizeof *b->tensors);
    if (b->tensors == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for the names of %zu layers", L);
    for (size_t i = 0; i < q3_tensors_count(b->file); i++) {
        const q3_entry *entry = q3_tensors_at(b->file, i);
        q3_alias alias;
        if (strcmp(entry->name, "input_ids") == 0 || strcmp(entry->name, "position_ids") == 0) continue;
        if (!q3_tap_alias(&alias, b->config, entry->name) ||
            !q3_tap_exists(b->config, 0, L, alias.id, alias.layer)) {
            if (b->unknown++ == 0) b->unknown_name = entry->name;
            continue;
        }
        for (size_t part = 0; part < alias.count; part++) {
            q3_status status = place(b, entry, &alias, (q3_tap_id)((size_t)alias.id + part), error);
            if (status != Q3_OK) return status;
        }
    }
    move_products(b);
    return Q3_OK;
}

q3_status q3_backend_open(backend *b, const char *path, const q3_model *model, q3_error *error)
{
    memset(b, 0, sizeof *b);
    b->path = path;
    b->config = q3_model_config(model);
    if (b->config->num_hidden_layers == 0)
        return q3_fail(error, Q3_ERROR_INPUT, "config.json: num_hidden_layers: found 0, expected layers to check");
    q3_status status = q3_tensors_open_any(&b->file, path, error);
    if (status != Q3_OK) b->file = NULL;
    if (status == Q3_OK) status = check_config(b, model, error);
    if (status == Q3_OK) status = read_dtype(b, error);
    if (status == Q3_OK) status = read_start(b, error);
    if (status == Q3_OK) status = read_ids(b, error);
    if (status == Q3_OK) status = read_positions(b, error);
    if (status == Q3_OK) status = find_taps(b, error);
    if (status != Q3_OK) q3_backend_close(b);
    return status;
}

void q3_backend_close(backend *b)
{
    free(b->ids);
    free(b->tensors);
    q3_tensors_close(b->file);
    memset(b, 0, sizeof *b);
}

const backend_tensor *q3_backend_find(const backend *b, q3_tap_id id, size_t layer)
{
    const backend_tensor *tensor = &b->tensors[layer * Q3_TAP_COUNT + (size_t)id];
    return tensor->entry != NULL ? tensor : NULL;
}

/* ==== Layouts ================================================================================ */

/* How a file can hold a tap. One token has `lines` lines of `width` elements; the tap is the first `inner`
 * elements from `offset` on of each of `outer` lines. All equal, but where several taps lie one behind the
 * other: then there are more lines (heads of q, k and v), or they are wider (gate and up, which are halves of
 * each). And a padded cache gives scores more keys than there are tokens. */
typedef struct tap_lines {
    uint64_t outer, inner, lines, width, offset;
    bool square; /* scores and probs, for which [H,T,S] is the rule */
    bool heads;  /* lines are heads, which may stand before the tokens */
} tap_lines;

static void tap_axes(tap_lines *row, const q3_config *c, q3_tap_id id, size_t T)
{
    size_t shape[3], rank = q3_tap_shape(shape, c, id, T);
    row->square = id == Q3_TAP_SCORES || id == Q3_TAP_PROBS;
    row->heads = id >= Q3_TAP_Q_PROJ && id <= Q3_TAP_O_PROJ_INPUT;
    row->outer = row->square ? shape[0] : rank == 3 ? shape[1] : 1;
    row->inner = shape[rank - 1];
    if (row->heads && rank == 2) {
        row->outer = row->inner / c->head_dim;
        row->inner = c->head_dim;
    }
    row->lines = row->outer;
    row->width = row->inner;
    row->offset = 0;
}

static void file_axes(tap_lines *row, const q3_alias *alias, const backend *b, const q3_entry *entry,
                      q3_tap_id id, size_t T)
{
    tap_axes(row, b->config, id, T);
    if (row->square && entry->rank > 0 && entry->shape[entry->rank - 1] > T)
        row->width = entry->shape[entry->rank - 1];
    for (size_t i = 0; i < alias->count; i++) {
        tap_lines part;
        q3_tap_id other = (q3_tap_id)((size_t)alias->id + i);
        if (other == id) continue;
        tap_axes(&part, b->config, other, T);
        if (other < id) row->offset += row->heads ? part.outer * part.inner : part.inner;
        row->lines += row->heads ? part.outer : 0;
        row->width += row->heads ? 0 : part.inner;
    }
}

/* A way to lay a tap out: its axes, of which number `token` is that of the tokens, each `times` long. */
typedef struct reading {
    const char *name;
    uint64_t axis[3], times;
    size_t rank, token;
    bool outer_first;
} reading;

/* All readings of a tap, the rule (INTERFACE: MODEL.md section 8) first; returns how many. */
static size_t list_readings(reading list[4], const tap_lines *row, size_t rank)
{
    uint64_t lines = row->lines, width = row->width;
    const reading flat = {row->heads ? "[T,H*hd]" : "[T,A*n]", {0, lines * width}, 1, 2, 0, false};
    const reading token_first = {row->square ? "[T,H,S]" : row->heads ? "[T,H,hd]" : "[T,A,n]",
                                 {0, lines, width}, 1, 3, 0, false};
    const reading merged = {row->heads ? "[T*H,hd]" : "[T*A,n]", {0, width}, lines, 2, 0, false};
    const reading outer_first = {row->square ? "[H,T,S]" : "[H,T,hd]", {lines, 0, width}, 1, 3, 1, true};
    size_t n = 0;
    list[n++] = row->square ? outer_first : rank == 2 ? flat : token_first;
    if (row->square || rank == 2) list[n++] = token_first;
    if (!row->square && rank == 3) list[n++] = flat;
    if (!row->square) list[n++] = merged;
    if (row->heads && !row->square && row->lines == row->outer) list[n++] = outer_first;
    return n;
}

/* How many tokens a tensor of this shape has under a reading; 0: it does not fit. Axes of 1 do not count, on
 * either side: so the case of one token is another one. */
static uint64_t count_tokens(const reading *r, const uint64_t *shape, size_t rank, size_t T)
{
    for (uint64_t one = 0; one < 2; one++) {
        uint64_t n = one;
        size_t at = 0;
        bool fits = true;
        for (size_t i = 0; i < r->rank && fits; i++) {
            uint64_t axis = i == r->token ? r->times : r->axis[i];
            if (i == r->token && one == 0) {
                fits = at < rank && shape[at] % axis == 0;
                if (fits) n = shape[at++] / axis;
            } else if (axis != 1) {
                fits = at < rank && shape[at++] == axis;
            }
        }
        if (fits && at == rank && n > 1 - one && n <= T) return n;
    }
    return 0;
}

/* Adds the reading's layout, unless it is one that is there already. */
static bool add_layout(backend_tensor *tensor, const tap_lines *row, const reading *r, uint64_t n, size_t T)
{
    backend_layout layout = {row->offset, 0, {0, 1}};
    if (n > 1) layout.token = r->outer_first ? row->width : row->lines * row->width;
    if (row->outer > 1) layout.stride[0] = r->outer_first ? n * row->width : row->width;
    bool known = tensor->layouts > 0 && memcmp(&layout, &tensor->layout[0], sizeof layout) == 0;
    if (known || tensor->layouts == 2) return false;
    tensor->first = T - (size_t)n;
    tensor->layout[tensor->layouts++] = layout;
    return true;
}

/* ---- what is said of it ---------------------------------------------------------------------- */

static void add_note(backend_tensor *tensor, const char *format, ...) Q3_PRINTF(2, 3);

static void add_note(backend_tensor *tensor, const char *format, ...)
{
    size_t used = strlen(tensor->note), room = sizeof tensor->note - used;
    va_list arguments;
    va_start(arguments, format);
    if (used > 0 && room > 2) {
        memcpy(tensor->note + used, ", ", 3);
        used += 2;
    }
    vsnprintf(tensor->note + used, sizeof tensor->note - used, format, arguments);
    va_end(arguments);
}

void q3_shape_text(char text[64], const uint64_t *shape, size_t rank)
{
    int used = snprintf(text, 64, "[");
    for (size_t i = 0; i < rank && used < 64; i++)
        used += snprintf(text + used, (size_t)(64 - used), "%s%llu", i > 0 ? "," : "",
                         (unsigned long long)shape[i]);
    if (used < 64) snprintf(text + used, (size_t)(64 - used), "]");
}

static void note_wrong_shape(backend_tensor *tensor, const tap_lines *row, size_t rank, size_t T)
{
    char found[64], expected[64];
    const uint64_t flat[2] = {T, row->lines * row->width}, wide[3] = {T, row->lines, row->width},
                   square[3] = {row->outer, T, T};
    q3_shape_text(found, tensor->entry->shape, tensor->entry->rank);
    q3_shape_text(expected, row->square ? square : rank == 2 ? flat : wide, rank);
    add_note(tensor, "found %.60s, expected %.60s", found, expected);
}

static void note_layout(backend_tensor *tensor, const tap_lines *row, const char *const names[2], size_t rank,
                        size_t T)
{
    const q3_entry *e = tensor->entry;
    uint64_t flat = row->lines * row->width;
    if (e->rank > rank && e->shape[0] == 1) add_note(tensor, "batch axis");
    if (tensor->layouts == 2)
        add_note(tensor, "axes %s or %s", names[0], names[1]);
    else if (names[0] != NULL)
        add_note(tensor, "axes %s", names[0]);
    if (row->square && row->width > T) add_note(tensor, "keys 0:%zu of %llu", T, (unsigned long long)row->width);
    if (row->lines > row->outer)
        add_note(tensor, "columns %llu:%llu of %llu", (unsigned long long)row->offset,
                 (unsigned long long)(row->offset + row->outer * row->inner), (unsigned long long)flat);
    else if (!row->square && row->width > row->inner)
        add_note(tensor, "columns %llu:%llu of %llu", (unsigned long long)row->offset,
                 (unsigned long long)(row->offset + row->inner), (unsigned long long)row->width);
    if (tensor->first > 0) add_note(tensor, "rows %zu:%zu of %zu", tensor->first, T, T);
}

/* ---- binding --------------------------------------------------------------------------------- */

/* What a hook on packed experts' act_fn sees (Hugging Face 5): the rows of the last expert alone, one a token at
 * most, so never more than T. */
static bool of_one_expert(const q3_entry *e, const tap_lines *row, q3_tap_id id, size_t T)
{
    return id >= Q3_TAP_EXPERTS_GATE_PROJ && id <= Q3_TAP_EXPERTS_DOWN_PROJ && e->rank == 2 &&
           e->shape[1] == row->width && e->shape[0] <= T && e->shape[0] != T * row->lines;
}

static void bind_tensor(backend_tensor *tensor, backend *b, q3_tap_id id, size_t T)
{
    const q3_entry *e = tensor->entry;
    bool integers = e->dtype == Q3_I32 || e->dtype == Q3_I64;
    size_t shape[3], rank = q3_tap_shape(shape, b->config, id, T), squeezed = 0;
    uint64_t axes[8];
    bool by_rule = false;
    const char *names[2] = {NULL, NULL};
    reading list[4];
    tap_lines row;
    q3_alias alias;
    tensor->layouts = tensor->first = 0;
    tensor->merged = false;
    tensor->note[0] = 0;
    if (e->dtype == Q3_AUTO) {
        add_note(tensor, "found another dtype, expected %s",
                 id == Q3_TAP_TOPK_INDICES ? "I32 or I64" : "F64, F32, BF16 or F16");
        return;
    }
    if (integers != (id == Q3_TAP_TOPK_INDICES)) {
        add_note(tensor, integers ? "found integers, expected floats" : "found floats, expected integers");
        return;
    }
    q3_tap_alias(&alias, b->config, e->name);
    if (alias.count == 1) alias.id = id; /* see move_products */
    file_axes(&row, &alias, b, e, id, T);
    if (of_one_expert(e, &row, id, T)) {
        if (b->unknown++ == 0) b->unknown_name = e->name;
        tensor->entry = NULL;
        return;
    }
    tensor->merged = rank == 3 && !row.heads && !row.square && e->rank == 2;
    for (size_t i = 0; i < e->rank; i++)
        if (e->shape[i] != 1) axes[squeezed++] = e->shape[i];
    size_t count = list_readings(list, &row, rank);
    for (size_t i = 0; i < count; i++) {
        uint64_t n = count_tokens(&list[i], axes, squeezed, T);
        if (n == 0 || !add_layout(tensor, &row, &list[i], n, T)) continue;
        names[tensor->layouts - 1] = list[i].name;
        by_rule = by_rule || i == 0;
    }
    if (by_rule && tensor->layouts == 1) names[0] = NULL;
    if (tensor->layouts == 0)
        note_wrong_shape(tensor, &row, rank, T);
    else
        note_layout(tensor, &row, names, rank, T);
}

q3_status q3_backend_bind(backend *b, size_t T, q3_error *error)
{
    if (b->T != 0 && b->T != T)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found %zu tokens, expected %zu", b->path, b->T, T);
    b->T = T;
    for (size_t i = 0; i < b->config->num_hidden_layers * Q3_TAP_COUNT; i++)
        if (b->tensors[i].entry != NULL) bind_tensor(&b->tensors[i], b, (q3_tap_id)(i % Q3_TAP_COUNT), T);
    return Q3_OK;
}

void q3_backend_row(float *row, const backend *b, const backend_tensor *tensor, q3_tap_id id, size_t layout, size_t t)
{
    const backend_layout *at = &tensor->layout[layout];
    tap_lines lines;
    tap_axes(&lines, b->config, id, b->T);
    for (uint64_t j = 0; j < lines.outer; j++, row += lines.inner) {
        uint64_t begin = at->offset + (t - tensor->first) * at->token + j * at->stride[0];
        if (id != Q3_TAP_TOPK_INDICES) {
            q3_entry_floats(row, tensor->entry, begin, (size_t)lines.inner);
            continue;
        }
        for (size_t k = 0; k < lines.inner; k++) {
            int64_t value;
            q3_entry_integers(&value, tensor->entry, begin + k, 1);
            row[k] = (float)value;
        }
    }
}
