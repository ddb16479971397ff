/* SPDX-License-Identifier: MIT */
/* judge.c - the library's objects: what is given of another implementation's run, and the judgement
 * of it. */
#include "judge/judge.h"

#include "host/files.h"
#include "host/taps.h"
#include "judge/backend.h"
#include "judge/report.h"
#include "judge/walk.h"

#include <stdlib.h>
#include <string.h>

struct q3_judge {
    q3_judge_options options;
    backend b;
    q3_run run;        /* dtype is the caller's to say, when it runs */
    int32_t *ids;      /* [given] of q3_judge_tokens, owned; NULL: those of the tensor input_ids,
                        * if there is one */
    size_t given;
    float *hidden;     /* [T,M] what the first layer starts from, owned; NULL: the embedding */
    bool prepared;
    q3_dtype shown;    /* what q3_judge_prepare answered when it was asked; Q3_AUTO: nothing */
    const char **globs; /* options.require, owned; the texts are the caller's */
};

/* ==== What is given =========================================================================== */

/* Whether a tap of the whole model fits. */
static bool fits_some(const char *glob, const q3_config *config)
{
    char name[Q3_TAP_NAME_SIZE];
    size_t L = config->num_hidden_layers;
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT; id++)
        for (size_t layer = 0; layer < (q3_tap_in_layer(id) ? L : 1); layer++) {
            q3_tap_name(name, id, layer);
            if (q3_tap_exists(config, 0, L, id, layer) && q3_tap_fits(glob, name)) return true;
        }
    return false;
}

/* What must be judged can be. A range of layers may have none of it: another part has. */
static q3_status read_globs(q3_judge *j, const q3_config *config, q3_error *error)
{
    const q3_judge_options *o = &j->options;
    j->globs = calloc(o->require_count + 1, sizeof *j->globs);
    if (j->globs == NULL) return q3_no_memory(error, "judge");
    for (size_t i = 0; i < o->require_count; i++) {
        j->globs[i] = o->require[i];
        if (!fits_some(o->require[i], config))
            return q3_fail(error, Q3_ERROR_INPUT,
                           "require: found %.100s, expected a pattern that a tap of the model fits",
                           o->require[i]);
    }
    return Q3_OK;
}

q3_status q3_judge_open(q3_judge **judge, const q3_config *config, const q3_judge_options *options,
                        q3_error *error)
{
    const q3_judge_options none = {0};
    q3_judge *j = calloc(1, sizeof *j);
    if (j == NULL) return q3_no_memory(error, "judge");
    j->options = options != NULL ? *options : none;
    q3_judge_options *o = &j->options;
    if (o->end_layer == 0) o->end_layer = config->num_hidden_layers;
    q3_status status = q3_backend_init(&j->b, config, o->name != NULL ? o->name : "tensors", error);
    if (status == Q3_OK &&
        (o->first_layer >= o->end_layer || o->end_layer > config->num_hidden_layers))
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "layers: found %zu to %zu, expected a range of the model's %zu",
                         o->first_layer, o->end_layer, config->num_hidden_layers);
    if (status == Q3_OK && o->kv != Q3_F32 && o->kv != Q3_BF16 && o->kv != Q3_F16)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "kv: found another dtype, expected float32, bfloat16 or float16");
    if (status == Q3_OK && o->router != Q3_F32 && o->router != Q3_BF16 && o->router != Q3_F16)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "router: found another dtype, expected float32, bfloat16 or float16");
    if (status == Q3_OK) status = read_globs(j, config, error);
    if (status != Q3_OK) {
        q3_judge_close(j);
        return status;
    }
    j->shown = Q3_AUTO;
    j->run.first_layer = o->first_layer;
    j->run.end_layer = o->end_layer;
    *judge = j;
    return Q3_OK;
}

void q3_judge_close(q3_judge *judge)
{
    if (judge == NULL) return;
    q3_backend_close(&judge->b);
    free(judge->ids);
    free(judge->hidden);
    free(judge->globs);
    free(judge);
}

static q3_status not_prepared(const q3_judge *judge, q3_error *error)
{
    if (!judge->prepared) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "%s: found more to judge, expected all before q3_judge_prepare", judge->b.name);
}

q3_status q3_judge_file(q3_judge *judge, const char *path, q3_error *error)
{
    q3_status status = not_prepared(judge, error);
    if (judge->options.name == NULL) judge->b.name = path;
    return status == Q3_OK ? q3_backend_add_file(&judge->b, path, error) : status;
}

q3_status q3_judge_tensor(q3_judge *judge, const q3_entry *tensor, q3_error *error)
{
    q3_status status = not_prepared(judge, error);
    return status == Q3_OK ? q3_backend_add_tensor(&judge->b, tensor, error) : status;
}

q3_status q3_judge_tokens(q3_judge *judge, const int32_t *ids, size_t count, q3_error *error)
{
    size_t V = judge->b.config->vocab_size;
    q3_status status = not_prepared(judge, error);
    if (status != Q3_OK) return status;
    if (count == 0 || count > Q3_MAX_POSITIONS)
        return q3_fail(error, Q3_ERROR_INPUT, "tokens: found %zu, expected 1 to %zu", count,
                       Q3_MAX_POSITIONS);
    for (size_t t = 0; t < count; t++)
        if (ids[t] < 0 || (size_t)ids[t] >= V)
            return q3_fail(error, Q3_ERROR_INPUT, "token %zu: found id %ld, expected 0 to %zu", t,
                           (long)ids[t], V - 1);
    int32_t *copy = malloc(count * sizeof *copy);
    if (copy == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", count);
    memcpy(copy, ids, count * sizeof *copy);
    free(judge->ids);
    judge->ids = copy;
    judge->given = count;
    return Q3_OK;
}

/* ==== The run ================================================================================= */

/* Where both the caller and the tensors say which tokens were run, they say the same. Layers above
 * 0 need none. */
static q3_status check_tokens(const q3_judge *j, q3_error *error)
{
    const backend *b = &j->b;
    if (j->ids == NULL && b->ids == NULL && j->run.first_layer == 0)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: input_ids: found none, expected them, or --tokens or --prompt",
                       b->name);
    if (j->ids != NULL && b->T != 0 && j->given != b->T)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found %zu tokens, expected %zu as given",
                       b->name, b->T, j->given);
    for (size_t t = 0; j->ids != NULL && b->ids != NULL && t < b->T; t++)
        if (b->ids[t] != j->ids[t])
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: input_ids: found %ld for token %zu, expected %ld as given", b->name,
                           (long)b->ids[t], t, (long)j->ids[t]);
    return Q3_OK;
}

/* The tensor that a first layer above 0 starts from; NULL: the embedding, or not given. */
static const backend_tensor *start_tensor(const q3_judge *j)
{
    return j->run.first_layer == 0 ? NULL
                                   : q3_backend_find(&j->b, Q3_TAP_LAYER, j->run.first_layer - 1);
}

/* T, as the tokens, the positions or the rows of the tensor that is started from say it. 0:
 * unknown. */
static size_t count_tokens(const q3_judge *j)
{
    const backend_tensor *start = start_tensor(j);
    if (j->ids != NULL) return j->given;
    if (j->b.T != 0 || start == NULL || start->entry->rank < 2) return j->b.T;
    uint64_t rows = start->entry->shape[start->entry->rank - 2];
    return rows <= Q3_MAX_POSITIONS ? (size_t)rows : 0;
}

/* What a first layer above 0 starts from: the output of the layer before, as the other gave it.
 * Here its room; it is read when the dtype is known, in which a residual is added. */
static q3_status take_hidden(q3_judge *j, size_t T, q3_error *error)
{
    const backend_tensor *start = start_tensor(j);
    char name[Q3_TAP_NAME_SIZE];
    size_t M = j->b.config->hidden_size;
    if (j->run.first_layer == 0) return Q3_OK;
    q3_tap_name(name, Q3_TAP_LAYER, j->run.first_layer - 1);
    if (start == NULL)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: %s: found none, expected it for --layers %zu:%zu", j->b.name, name,
                       j->run.first_layer, j->run.end_layer);
    if (start->layouts == 0 || start->first != 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found another shape, expected [%zu,%zu]",
                       j->b.name, name, T, M);
    j->hidden = malloc(T * M * sizeof *j->hidden);
    if (j->hidden == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", T);
    return Q3_OK;
}

static void read_hidden(q3_judge *j)
{
    const backend_tensor *start = start_tensor(j);
    for (size_t t = 0; start != NULL && t < j->b.T; t++)
        q3_backend_row(j->hidden + t * j->b.config->hidden_size, &j->b, start, Q3_TAP_LAYER, 0, t);
}

q3_status q3_judge_prepare(q3_judge *judge, q3_dtype *dtype, q3_error *error)
{
    backend *b = &judge->b;
    q3_status status = Q3_OK;
    if (!judge->prepared) {
        status = q3_backend_read(b, error);
        if (status == Q3_OK) status = check_tokens(judge, error);
        size_t T = count_tokens(judge);
        if (status == Q3_OK && (T == 0 || T > Q3_MAX_POSITIONS - b->start))
            status = q3_fail(error, Q3_ERROR_INPUT,
                             "%s: found %zu tokens from %zu on, expected 1 or more, all below "
                             "%zu",
                             b->name, T, b->start, Q3_MAX_POSITIONS);
        if (status == Q3_OK) status = q3_backend_bind(b, T, error);
        if (status == Q3_OK) status = take_hidden(judge, T, error);
        judge->run.start = b->start - b->past;
        judge->run.rows = T + b->past;
        judge->run.chunk = T;
        judge->prepared = status == Q3_OK;
    }
    if (status == Q3_OK && dtype != NULL && *dtype == Q3_AUTO)
        *dtype = judge->shown = q3_backend_dtype(b);
    return status;
}

/* ==== What the report says of the run ========================================================= */

static void free_list(q3_text_list *list)
{
    for (size_t i = 0; i < list->count; i++) free((void *)(uintptr_t)list->items[i]);
    free(list->items);
}

static q3_status begin_list(q3_text_list *list, size_t count, q3_error *error)
{
    list->items = calloc(count + 1, sizeof *list->items);
    return list->items != NULL ? Q3_OK : q3_no_memory(error, "report");
}

/* Appends a copy; NULL: there was no memory for it. */
static q3_status add_text(q3_text_list *list, char *text, q3_error *error)
{
    if (text == NULL) return q3_no_memory(error, "report");
    list->items[list->count++] = text;
    return Q3_OK;
}

/* The text of each token, which may be a part of a character. */
static q3_status list_tokens(q3_text_list *list, const q3_judge *j, const int32_t *ids,
                             q3_error *error)
{
    q3_status status = begin_list(list, j->b.T, error);
    for (size_t t = 0; t < j->b.T && status == Q3_OK; t++) {
        uint8_t *bytes;
        size_t length;
        /* an id without a token has no text */
        if (q3_tokenizer_decode(j->options.tokenizer, &ids[t], 1, &bytes, &length, NULL) != Q3_OK)
            bytes = calloc(1, 1);
        status = add_text(list, (char *)bytes, error);
    }
    return status;
}

static q3_status fill_lists(q3_judged_run *run, const q3_judge *j, const q3_weights *weights,
                            q3_error *error)
{
    const int32_t *ids = j->ids != NULL ? j->ids : j->b.ids;
    q3_status status = begin_list(&run->weights, run->end_layer - run->first_layer, error);
    for (size_t i = run->first_layer; i < run->end_layer && status == Q3_OK; i++) {
        char text[Q3_FINGERPRINT_SIZE];
        q3_fingerprint_layer(text, j->b.config, weights, i);
        status = add_text(&run->weights, q3_join(text, "", ""), error);
    }
    if (status == Q3_OK && ids != NULL && j->options.tokenizer != NULL)
        status = list_tokens(&run->token_text, j, ids, error);
    return status;
}

q3_status q3_judge_run(q3_judge *judge, const q3_weights *weights, q3_dtype dtype,
                       q3_report **report, q3_error *error)
{
    static const char *const accumulate[] = {"", "bf16", "f16", "tf32", "bf16-sums", "f16-sums",
                                             "fp8", "q8"};
    const q3_judge_options *o = &judge->options;
    const backend *b = &judge->b;
    q3_text lines = {0};
    *report = NULL;
    q3_status status = q3_judge_prepare(judge, NULL, error);
    if (status != Q3_OK) return status;
    if (dtype != Q3_F32 && dtype != Q3_BF16 && dtype != Q3_F16)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "dtype: found none, expected float32, bfloat16 or float16");
    judge->run.dtype = judge->b.run = dtype;
    read_hidden(judge);
    q3_judged_run run = {
        .model = o->model != NULL ? o->model : "",
        .file = b->name,
        .dtype = dtype,
        .T = b->T,
        .start = b->start,
        .layers = b->config->num_hidden_layers,
        .first_layer = judge->run.first_layer,
        .end_layer = judge->run.end_layer,
        .free_running = o->free_running,
        .strict = o->strict,
        .accumulate = accumulate[o->accumulate],
        .kv = o->kv != Q3_F32 ? q3_dtype_name(o->kv) : "",
        .unknown = b->unknown,
        .unknown_name = b->unknown_name,
        .router = o->router != Q3_F32 ? q3_dtype_name(o->router) : "",
        .version = q3_version(),
        .dtype_note = judge->shown == dtype || judge->shown == Q3_AUTO ? b->dtype_note : "",
        .unknowns = b->unknowns,
        .unknown_count = b->unknown_count,
        .side = {o->side, 0},
        .command = o->command,
        .require = {judge->globs, o->require_count},
    };
    status = fill_lists(&run, judge, weights, error);
    if (status == Q3_OK) q3_report_put_run(&lines, &run);
    free_list(&run.weights);
    free_list(&run.token_text);
    const int32_t *ids = judge->ids != NULL ? judge->ids : b->ids;
    if (status == Q3_OK)
        status = q3_walk(&lines, b->config, weights, &judge->run, b, ids, judge->hidden, o, error);
    q3_report_part part = {b->name, lines.data, lines.size};
    if (status == Q3_OK && lines.failed)
        status = q3_no_memory(error, b->name);
    if (status == Q3_OK) status = q3_report_read(report, &part, 1, false, error);
    free(lines.data);
    return status;
}
