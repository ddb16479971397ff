/* SPDX-License-Identifier: MIT */
/* dump.c - `qwen3moe dump`: every tap of a run, in one safetensors file. */
#include "command/command.h"

#include "host/sha256.h"
#include "host/taps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The tensors of the file, in the order of computation, and where each tap's is. */
typedef struct dump_plan {
    q3_entry *entries;
    char (*names)[Q3_TAP_NAME_SIZE];
    size_t count;
    size_t *index; /* [L * Q3_TAP_COUNT + id]: entry of a tap, or SIZE_MAX */
    bool *used;    /* [tap_count]: the pattern fitted something */
} dump_plan;

typedef struct dumping {
    const dump_plan *plan;
    const q3_session *session;
    q3_writer *writer;
    const resumable *resume; /* NULL: without --resume */
    int64_t *integers; /* [chunk * max(A, 1)] */
    size_t T;
    q3_status status;
    q3_error *error;
} dumping;

/* {NULL} is allowed. */
static void plan_free(dump_plan *plan)
{
    free(plan->entries);
    free(plan->names);
    free(plan->index);
    free(plan->used);
}

/* Adds the tensor if no --taps was given or one fits; returns its index, or SIZE_MAX. */
static size_t plan_add(dump_plan *plan, const command_line *command, const char *name,
                       q3_dtype dtype, size_t rank, const size_t *shape)
{
    bool wanted = command->tap_count == 0;
    for (size_t i = 0; i < command->tap_count; i++) {
        if (!q3_tap_fits(command->taps[i], name)) continue;
        wanted = plan->used[i] = true;
    }
    if (!wanted) return SIZE_MAX;
    q3_entry *entry = &plan->entries[plan->count];
    memcpy(plan->names[plan->count], name, strlen(name) + 1);
    memset(entry, 0, sizeof *entry);
    entry->name = plan->names[plan->count];
    entry->dtype = dtype;
    entry->rank = rank;
    for (size_t i = 0; i < rank; i++) entry->shape[i] = shape[i];
    return plan->count++;
}

/* Adds a tap if this run has it. */
static void plan_tap(dump_plan *plan, const command_line *command, const q3_session *session,
                     size_t T, q3_tap_id id, size_t layer)
{
    char name[Q3_TAP_NAME_SIZE];
    size_t shape[3], *index = &plan->index[layer * Q3_TAP_COUNT + (size_t)id];
    *index = SIZE_MAX;
    if (!q3_tap_exists(session->config, session->run.first_layer, session->run.end_layer, id,
                       layer))
        return;
    q3_tap_name(name, id, layer);
    size_t rank = q3_tap_shape(shape, session->config, id, T);
    *index = plan_add(plan, command, name, q3_tap_dtype(id, session->run.dtype), rank, shape);
}

/* All tensors of the file: ids, then the taps in the order of computation. */
static q3_status plan_make(dump_plan *plan, const command_line *command, const q3_session *session,
                           const token_list *tokens, size_t T, q3_error *error)
{
    size_t L = session->config->num_hidden_layers, most = (L + 1) * Q3_TAP_COUNT + 2;
    memset(plan, 0, sizeof *plan);
    plan->entries = calloc(most, sizeof *plan->entries);
    plan->names = calloc(most, sizeof *plan->names);
    plan->index = calloc(most, sizeof *plan->index);
    plan->used = calloc(command->tap_count + 1, sizeof *plan->used);
    if (plan->entries == NULL || plan->names == NULL || plan->index == NULL || plan->used == NULL)
        return q3_no_memory(error, "names of the tensors");
    if (tokens->count != 0) plan_add(plan, command, "input_ids", Q3_I64, 1, &T);
    plan_add(plan, command, "position_ids", Q3_I64, 1, &T);
    for (q3_tap_id id = (q3_tap_id)0; id < Q3_TAP_COUNT; id++)
        if (q3_tap_at_front(id)) plan_tap(plan, command, session, T, id, 0);
    for (size_t layer = session->run.first_layer; layer < session->run.end_layer; layer++)
        for (q3_tap_id id = (q3_tap_id)0; id < Q3_TAP_COUNT; id++)
            if (q3_tap_in_layer(id)) plan_tap(plan, command, session, T, id, layer);
    for (q3_tap_id id = (q3_tap_id)0; id < Q3_TAP_COUNT; id++)
        if (q3_tap_at_head(id)) plan_tap(plan, command, session, T, id, 0);
    for (size_t i = 0; i < command->tap_count; i++)
        if (!plan->used[i])
            return q3_fail(error, Q3_ERROR_INPUT, "--taps: no tap fits '%.200s'", command->taps[i]);
    return Q3_OK;
}

/* The pass calls this: a piece of a tensor goes to its place in the file. */
static void write_tap(void *user, const q3_tap *tap)
{
    dumping *d = user;
    size_t index = d->plan->index[tap->layer * Q3_TAP_COUNT + (size_t)tap->id];
    if (index == SIZE_MAX || d->status != Q3_OK) return;
    size_t row = 1;
    for (size_t i = tap->token_axis + 1; i < tap->rank; i++) row *= tap->shape[i];
    if (tap->token_axis == 1) { /* [H, tokens, keys so far] into [H, T, T]; the masked stay 0 */
        const float *values = tap->data;
        for (size_t h = 0; h < tap->shape[0]; h++)
            for (size_t t = 0; t < tap->shape[1] && d->status == Q3_OK; t++, values += row)
                d->status = q3_writer_floats(d->writer, index,
                                             (uint64_t)(h * d->T + tap->first + t) * d->T, values,
                                             row, d->error);
        return;
    }
    size_t count = tap->shape[0] * row;
    uint64_t first = (uint64_t)tap->first * row;
    if (tap->dtype != Q3_I32) {
        d->status = q3_writer_floats(d->writer, index, first, tap->data, count, d->error);
        return;
    }
    const int32_t *ids = tap->data;
    for (size_t i = 0; i < count; i++) d->integers[i] = ids[i];
    d->status = q3_writer_integers(d->writer, index, first, d->integers, count, d->error);
}

/* input_ids and position_ids, where they were asked for. */
static q3_status write_ids(q3_writer *writer, const dump_plan *plan, const q3_session *session,
                           const token_list *tokens, size_t T, q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t i = 0; i < plan->count && plan->entries[i].dtype == Q3_I64; i++) {
        bool ids = strcmp(plan->entries[i].name, "input_ids") == 0;
        for (size_t t = 0; t < T && status == Q3_OK; t++) {
            int64_t value = ids ? tokens->ids[t] : (int64_t)(session->run.start + t);
            status = q3_writer_integers(writer, i, t, &value, 1, error);
        }
    }
    return status;
}

/* What --from gives: the hidden states that layer A starts from. */
typedef struct dump_source {
    q3_tensors *file;
    const q3_entry *hidden;
} dump_source;

/* A file without the key passes: other systems write none. */
static q3_status check_metadata(const q3_tensors *file, const char *path, const char *key,
                                const char *expected, q3_error *error)
{
    const char *found = q3_tensors_metadata(file, key);
    if (found == NULL || strcmp(found, expected) == 0) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%s: metadata %s: found %.160s, expected %.160s", path,
                   key, found, expected);
}

/* The ids of --from, where it has any: taken if none were given, else they must be the same. */
static q3_status source_ids(const dump_source *source, const char *path, token_list *tokens,
                            size_t T, q3_error *error)
{
    const q3_entry *ids = q3_tensors_find(source->file, "input_ids");
    bool given = tokens->count != 0;
    if (ids == NULL || ids->rank != 1 || ids->shape[0] != T ||
        (ids->dtype != Q3_I64 && ids->dtype != Q3_I32))
        return Q3_OK;
    if (!given) tokens->ids = malloc(T * sizeof *tokens->ids);
    if (tokens->ids == NULL) return q3_no_memory(error, path);
    tokens->count = T;
    for (size_t t = 0; t < T; t++) {
        int64_t id;
        q3_entry_integers(&id, ids, t, 1);
        if (given && id != tokens->ids[t])
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: input_ids: found %lld for token %zu, expected %ld as given", path,
                           (long long)id, t, (long)tokens->ids[t]);
        if (!given) tokens->ids[t] = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
    }
    return Q3_OK;
}

/* Opens --from, checks that it is of this model and these tokens, and takes its ids. */
static q3_status source_open(dump_source *source, const command_line *command, q3_session *session,
                             token_list *tokens, size_t *T, q3_error *error)
{
    const char *path = command->value[OPTION_FROM];
    char name[Q3_TAP_NAME_SIZE];
    size_t M = session->config->hidden_size;
    if (path == NULL)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--from is missing: a file with the output of layer %zu, to start from",
                       session->run.first_layer - 1);
    q3_status status = q3_tensors_open(&source->file, path, error);
    if (status == Q3_OK)
        status = check_metadata(source->file, path, "config", q3_model_config_json(session->model),
                                error);
    if (status == Q3_OK && session->run.dtype != Q3_AUTO)
        status = check_metadata(source->file, path, "dtype", q3_dtype_name(session->run.dtype),
                                error);
    if (status != Q3_OK) return status;
    q3_tap_name(name, Q3_TAP_LAYER, session->run.first_layer - 1);
    const q3_entry *hidden = source->hidden = q3_tensors_find(source->file, name);
    if (hidden == NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: missing", path, name);
    if (hidden->rank != 2 || hidden->shape[0] == 0 || hidden->shape[0] > Q3_MAX_POSITIONS ||
        hidden->shape[1] != M || hidden->dtype == Q3_I32 || hidden->dtype == Q3_I64)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: %s: found another shape or integers, expected floats [T,%zu]", path,
                       name, M);
    *T = (size_t)hidden->shape[0];
    if (tokens->count != 0 && tokens->count != *T)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found %zu rows, expected %zu, one a token",
                       path, name, *T, tokens->count);
    return source_ids(source, path, tokens, *T, error);
}

/* --start, else what --from's metadata says, else 0; if both are there they must agree. */
static q3_status read_start(const command_line *command, const dump_source *source,
                            q3_session *session, q3_error *error)
{
    const char *given = source->file != NULL ? q3_tensors_metadata(source->file, "start") : NULL;
    uint64_t absent = 0, start;
    for (const char *p = given; p != NULL && *p != 0; p++) {
        if (*p < '0' || *p > '9' || absent > Q3_MAX_POSITIONS)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: metadata start: found %.40s, expected a position below %zu",
                           command->value[OPTION_FROM], given, Q3_MAX_POSITIONS);
        absent = absent * 10 + (uint64_t)(*p - '0');
    }
    q3_status status = integer_option(command, OPTION_START, 0, Q3_MAX_POSITIONS - 1, absent,
                                      &start, error);
    if (status == Q3_OK && given != NULL && start != absent)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--start: found %llu, expected %llu as in the metadata of %s",
                       (unsigned long long)start, (unsigned long long)absent,
                       command->value[OPTION_FROM]);
    session->run.start = (size_t)(start < Q3_MAX_POSITIONS ? start : Q3_MAX_POSITIONS);
    return status;
}

/* A layer is through, and its tensors are written; first they, then the state go to the disk. */
static q3_status layer_done(void *user, size_t next, q3_error *error)
{
    dumping *d = user;
    if (d->status != Q3_OK || d->resume == NULL || next >= d->session->run.end_layer)
        return d->status;
    d->status = q3_writer_sync(d->writer, error);
    if (d->status == Q3_OK) d->status = resumable_save(d->resume, next, error);
    return d->status;
}

/* The forward pass from layer `next` on (0: from the first); write_tap saves what it gives. */
static q3_status run_layers(dumping *d, const token_list *tokens, const dump_source *source,
                            size_t next)
{
    const q3_session *session = d->session;
    layer_pass pass = {.what = "dump: layer", .tokens = tokens->ids,
                       .logits = d->plan->index[Q3_TAP_LM_HEAD] != SIZE_MAX, .tap = write_tap,
                       .begin = next, .done = layer_done, .user = d};
    if (source->hidden != NULL && next == 0)
        q3_entry_floats(session->hidden, source->hidden, 0, d->T * session->config->hidden_size);
    return session_run_layers(session, &pass, d->error);
}

/* What makes a run another one, as texts. */
typedef struct run_texts {
    char layers[48], tokens[65], from[65];
    q3_text taps;
} run_texts;

/* --resume: what this run is. */
static q3_status describe(resumable *run, run_texts *texts, const command_line *command,
                          const q3_session *session, const token_list *tokens,
                          const dump_source *source, const char *const *metadata, q3_error *error)
{
    sha256 sum;
    const q3_entry *hidden = source->hidden;
    for (size_t i = 4; metadata[i] != NULL; i += 2) /* behind format and producer */
        resumable_add(run, metadata[i], metadata[i + 1]);
    snprintf(texts->layers, sizeof texts->layers, "%zu:%zu", session->run.first_layer,
             session->run.end_layer);
    sha256_init(&sum);
    for (size_t i = 0; i < tokens->count; i++)
        sha256_add(&sum, &tokens->ids[i], sizeof tokens->ids[i]);
    sha256_text(&sum, texts->tokens);
    sha256_init(&sum);
    if (hidden != NULL)
        sha256_add(&sum, hidden->data, (size_t)(hidden->shape[0] * hidden->shape[1]) *
                                           q3_dtype_size(hidden->dtype));
    sha256_text(&sum, texts->from);
    for (size_t i = 0; i < command->tap_count; i++) {
        q3_text_add(&texts->taps, i > 0 ? " " : "");
        q3_text_add(&texts->taps, command->taps[i]);
    }
    if (texts->taps.failed) return q3_no_memory(error, "--taps");
    resumable_add(run, "layers", texts->layers);
    resumable_add(run, "tokens", texts->tokens);
    resumable_add(run, "from", texts->from);
    resumable_add(run, "taps", texts->taps.data != NULL ? texts->taps.data : "*");
    return Q3_OK;
}

/* Opens the file: a new one, or with --resume the unfinished one, which *next layers are in. */
static q3_status open_file(dumping *d, const char *path, const char *const *metadata, size_t *next,
                           q3_error *error)
{
    const dump_plan *plan = d->plan;
    *next = 0;
    if (d->resume == NULL)
        return q3_writer_open(&d->writer, path, plan->entries, plan->count, metadata, error);
    q3_status status = resumable_read(d->resume, next, error);
    if (status != Q3_OK) return status;
    return q3_writer_go_on(&d->writer, path, plan->entries, plan->count, metadata, *next == 0,
                           error);
}

/* Runs and writes; on an error no file is left but with --resume. */
static q3_status write_file(const command_line *command, q3_session *session, const dump_plan *plan,
                            const token_list *tokens, const dump_source *source, size_t T,
                            q3_error *error)
{
    const char *path = command->value[OPTION_OUTPUT];
    resumable run = {.session = session};
    run_texts texts = {.layers = ""};
    size_t next;
    char start[24];
    snprintf(start, sizeof start, "%zu", session->run.start);
    const char *metadata[] = {
        "format", "qwen3moe-taps-1", "producer", "qwen3moe", "dtype",
        q3_dtype_name(session->run.dtype),
        "start", start, "config", q3_model_config_json(session->model), NULL,
    };
    size_t A = session->config->num_experts > 0 ? session->config->num_experts_per_tok : 1;
    size_t chunk = session->run.chunk;
    dumping d = {.plan = plan, .session = session, .T = T, .status = Q3_OK, .error = error,
                 .integers = calloc(chunk, A * sizeof(int64_t))};
    if (d.integers == NULL) d.status = q3_no_memory(error, "a chunk of tokens");
    if (d.status == Q3_OK && command->value[OPTION_RESUME] != NULL) {
        d.resume = &run;
        d.status = resumable_open(&run, session, path, error);
        if (d.status == Q3_OK)
            d.status = describe(&run, &texts, command, session, tokens, source, metadata, error);
    }
    if (d.status == Q3_OK) d.status = open_file(&d, path, metadata, &next, error);
    if (d.status == Q3_OK) d.status = write_ids(d.writer, plan, session, tokens, T, error);
    if (d.status == Q3_OK) d.status = run_layers(&d, tokens, source, next);
    if (d.status == Q3_OK) {
        d.status = q3_writer_commit(d.writer, error);
        if (d.status == Q3_OK && d.resume != NULL) resumable_remove(&run);
    } else {
        q3_writer_abandon(d.writer);
    }
    resumable_close(&run);
    free(texts.taps.data);
    free(d.integers);
    return d.status;
}

/* What verb_dump does, but for opening and freeing. */
static q3_status dump(const command_line *command, q3_session *session, token_list *tokens,
                      dump_source *source, dump_plan *plan, q3_error *error)
{
    uint64_t chunk, bytes = 0;
    size_t T = tokens->count;
    q3_status status = Q3_OK;
    if (session->run.first_layer > 0)
        status = source_open(source, command, session, tokens, &T, error);
    else if (command->value[OPTION_FROM] != NULL)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "--from is given, but the run starts at layer 0");
    if (status == Q3_OK) status = read_start(command, source, session, error);
    if (status == Q3_OK)
        status = integer_option(command, OPTION_CHUNK, 1, Q3_MAX_POSITIONS, TOKENS_AT_ONCE, &chunk,
                                error);
    if (status == Q3_OK && (session->run.first_layer == 0 || tokens->count != 0))
        status = session_check_tokens(session, tokens, 0, error);
    if (status == Q3_OK && T > Q3_MAX_POSITIONS - session->run.start)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "positions: found %zu tokens from %zu on, expected all below %zu", T,
                         session->run.start, Q3_MAX_POSITIONS);
    if (status != Q3_OK) return status;
    session->run.rows = T;
    session->run.chunk = chunk < T ? (size_t)chunk : T;
    status = session_load_layers(session, command, error);
    if (status == Q3_OK && source->file != NULL)
        status = check_metadata(source->file, command->value[OPTION_FROM], "dtype",
                                q3_dtype_name(session->run.dtype), error);
    if (status == Q3_OK) status = plan_make(plan, command, session, tokens, T, error);
    if (status == Q3_OK) status = write_file(command, session, plan, tokens, source, T, error);
    if (status != Q3_OK) return status;
    for (size_t i = 0; i < plan->count; i++) {
        const q3_entry *e = &plan->entries[i];
        uint64_t elements = 1;
        for (size_t r = 0; r < e->rank; r++) elements *= e->shape[r];
        bytes += elements * q3_dtype_size(e->dtype);
    }
    bool standard = strcmp(command->value[OPTION_OUTPUT], "-") == 0; /* which then holds the file */
    fprintf(standard ? stderr : stdout, "%s: %zu tensors of %zu tokens, %s, %llu bytes of data\n",
            standard ? "standard output" : command->value[OPTION_OUTPUT], plan->count, T,
            q3_dtype_name(session->run.dtype), (unsigned long long)bytes);
    return Q3_OK;
}

q3_status verb_dump(const command_line *command, q3_error *error)
{
    q3_session session;
    token_list tokens = {NULL, 0};
    dump_source source = {NULL, NULL};
    dump_plan plan = {NULL, NULL, 0, NULL, NULL};
    if (command->value[OPTION_OUTPUT] == NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "-o is missing: the file to write");
    if (command->value[OPTION_RESUME] != NULL && strcmp(command->value[OPTION_OUTPUT], "-") == 0)
        return q3_fail(error, Q3_ERROR_INPUT, "--resume: found -o -, expected a file");
    q3_status status = session_open(&session, command, error);
    if (status != Q3_OK) return status;
    bool given = command->value[OPTION_TOKENS] != NULL || command->value[OPTION_PROMPT] != NULL;
    if (given)
        status = read_tokens(command, command->value[OPTION_PROMPT], &tokens, error);
    else if (session.run.first_layer == 0)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "no tokens: give --tokens 1,2,3 or --prompt TEXT");
    if (status == Q3_OK) status = dump(command, &session, &tokens, &source, &plan, error);
    plan_free(&plan);
    q3_tensors_close(source.file);
    free(tokens.ids);
    session_close(&session);
    return status;
}
