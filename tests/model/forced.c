/* SPDX-License-Identifier: MIT */
/* Every operator on another run's inputs, in float32: built and run by scripts/ci/accuracy.py.
 *
 * forced MODEL TAPS OUT   MODEL is a folder, TAPS a dump of some run of it (all taps, as
 *                         `qwen3moe dump` writes them), OUT a new file with the same names
 *
 * The prompt of TAPS runs in one call. At each tap our values go to OUT, then the values of TAPS
 * are written over them: so each tensor of OUT is one operator, applied to tensors of TAPS alone.
 * OUT has one tensor more, inv_freq [hd/2], from which cos and sin were made. Exit status 2: bad
 * input, one line. */
#include "qwen3moe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct forcing {
    const q3_config *config;
    const q3_tensors *taps;
    q3_writer *writer;
    size_t T;
    size_t seen; /* taps that ended: a whole tensor each */
} forcing;

static void die(const char *what, const char *text)
{
    fprintf(stderr, "forced: %s: %s\n", what, text);
    exit(2);
}

static void check(q3_status status, const q3_error *error)
{
    if (status != Q3_OK) die("error", error->text);
}

/* The same once OUT is being written: nothing is left of it. */
static void stop(const forcing *f, const char *what, const char *text)
{
    q3_writer_abandon(f->writer);
    die(what, text);
}

static void check_written(const forcing *f, q3_status status, const q3_error *error)
{
    if (status != Q3_OK) stop(f, "error", error->text);
}

static void *block(size_t count, size_t size)
{
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) die("memory", "found none, expected some");
    return memory;
}

/* The tensor of TAPS for a tap, of the right shape; *index is its place in TAPS, and in OUT. */
static const q3_entry *find(const forcing *f, const q3_tap *tap, size_t *index)
{
    char name[Q3_TAP_NAME_SIZE];
    size_t shape[3], rank = q3_tap_shape(shape, f->config, tap->id, f->T);
    q3_tap_name(name, tap->id, tap->layer);
    for (*index = 0; *index < q3_tensors_count(f->taps); (*index)++) {
        const q3_entry *entry = q3_tensors_at(f->taps, *index);
        if (strcmp(entry->name, name) != 0) continue;
        bool fits = entry->rank == rank && entry->dtype == q3_tap_dtype(tap->id, Q3_F32);
        for (size_t i = 0; fits && i < rank; i++) fits = entry->shape[i] == shape[i];
        if (!fits) stop(f, name, "found another dtype or shape, expected that of a float32 run");
        return entry;
    }
    stop(f, name, "found no such tensor, expected every tap");
    return NULL;
}

/* Saves `count` elements of ours at `first` of the whole tensor and puts theirs in their place. */
static void swap(const forcing *f, const q3_entry *entry, size_t index, size_t first, void *ours,
                 size_t count)
{
    q3_error error;
    if (entry->dtype == Q3_I32) {
        int32_t *ids = ours;
        int64_t *values = block(count, sizeof *values);
        for (size_t i = 0; i < count; i++) values[i] = ids[i];
        check_written(f, q3_writer_integers(f->writer, index, first, values, count, &error),
                      &error);
        q3_entry_integers(values, entry, first, count);
        for (size_t i = 0; i < count; i++) ids[i] = (int32_t)values[i];
        free(values);
        return;
    }
    check_written(f, q3_writer_floats(f->writer, index, first, ours, count, &error), &error);
    q3_entry_floats(ours, entry, first, count);
}

static void force(void *user, const q3_tap *tap)
{
    forcing *f = user;
    size_t index, row = 1, tokens = tap->shape[tap->token_axis];
    const q3_entry *entry = find(f, tap, &index);
    for (size_t i = tap->token_axis + 1; i < tap->rank; i++) row *= tap->shape[i];
    if (tap->token_axis == 0) {
        swap(f, entry, index, tap->first * row, tap->data, tokens * row);
    } else { /* [H, tokens, keys so far] of [H, T, T] */
        float *values = tap->data;
        for (size_t h = 0; h < tap->shape[0]; h++)
            for (size_t t = 0; t < tokens; t++, values += row)
                swap(f, entry, index, (h * f->T + tap->first + t) * f->T, values, row);
    }
    if (tap->first + tokens == f->T) f->seen++;
}

static size_t decimal(const char *digits)
{
    size_t n = 0;
    if (digits == NULL) die("metadata", "found no start, expected a position");
    for (; *digits >= '0' && *digits <= '9'; digits++) n = 10 * n + (size_t)(*digits - '0');
    return n;
}

/* OUT: the tensors of TAPS in their order, ids and positions unchanged, and inv_freq. */
static q3_writer *open_out(const forcing *f, const char *path, size_t start)
{
    static const char *const metadata[] = {"format", "qwen3moe-forced-1", NULL};
    size_t count = q3_tensors_count(f->taps), half = f->config->head_dim / 2;
    q3_entry *entries = block(count + 1, sizeof *entries);
    float *inv_freq = block(half, sizeof *inv_freq);
    q3_writer *writer;
    q3_error error;
    for (size_t i = 0; i < count; i++) entries[i] = *q3_tensors_at(f->taps, i);
    entries[count].name = "inv_freq";
    entries[count].dtype = Q3_F32;
    entries[count].rank = 1;
    entries[count].shape[0] = half;
    check(q3_writer_open(&writer, path, entries, count + 1, metadata, &error), &error);
    q3_rope_frequencies(inv_freq, &f->config->rope, f->config->head_dim,
                        f->config->max_position_embeddings, start + f->T);
    check(q3_writer_floats(writer, count, 0, inv_freq, half, &error), &error);
    for (size_t i = 0; i < count; i++) {
        if (entries[i].dtype != Q3_I64) continue;
        int64_t *values = block(f->T, sizeof *values);
        q3_entry_integers(values, q3_tensors_at(f->taps, i), 0, f->T);
        check(q3_writer_integers(writer, i, 0, values, f->T, &error), &error);
        free(values);
    }
    free(inv_freq);
    free(entries);
    return writer;
}

static int32_t *read_ids(forcing *f)
{
    const q3_entry *ids = q3_tensors_find(f->taps, "input_ids");
    const q3_entry *positions = q3_tensors_find(f->taps, "position_ids");
    if (ids == NULL || ids->rank != 1 || ids->dtype != Q3_I64 || positions == NULL ||
        positions->rank != 1 || positions->dtype != Q3_I64 || positions->shape[0] != ids->shape[0])
        die("input_ids", "found none of int64 [T], expected them and position_ids");
    f->T = (size_t)ids->shape[0];
    int32_t *tokens = block(f->T, sizeof *tokens);
    for (size_t t = 0; t < f->T; t++) {
        int64_t id;
        q3_entry_integers(&id, ids, t, 1);
        if (id < 0 || (uint64_t)id >= f->config->vocab_size)
            die("input_ids", "found an id outside the vocabulary");
        tokens[t] = (int32_t)id;
    }
    return tokens;
}

int main(int argc, char **argv)
{
    q3_error error;
    q3_model *model;
    q3_tensors *taps;
    q3_dtype dtype = Q3_F32;
    if (argc != 4) die("usage", "forced MODEL TAPS OUT");
    check(q3_model_open(&model, argv[1], &error), &error);
    const q3_config *config = q3_model_config(model);
    check(q3_model_load(model, &dtype, 0, config->num_hidden_layers, &error), &error);
    check(q3_tensors_open(&taps, argv[2], &error), &error);
    forcing f = {config, taps, NULL, 0, 0};
    int32_t *tokens = read_ids(&f);
    size_t start = decimal(q3_tensors_metadata(taps, "start"));
    q3_run run = {dtype, 0, config->num_hidden_layers, start, f.T, f.T, 0};
    q3_input input = {tokens, NULL, f.T, start + f.T, f.T};
    size_t size = q3_state_size(config, &run);
    void *memory = block(size, 1);
    q3_state *state = q3_state_init(memory, size, config, q3_model_weights(model), &run);
    if (state == NULL) die("state", "found arithmetic that breaks a rule");
    f.writer = open_out(&f, argv[3], start);
    check_written(&f, q3_forward(state, &input, force, &f, &error), &error);
    if (f.seen + 2 != q3_tensors_count(taps))
        stop(&f, argv[2], "found a tensor that is no tap of this model");
    check(q3_writer_commit(f.writer, &error), &error);
    q3_tensors_close(taps);
    q3_model_close(model);
    free(memory);
    free(tokens);
    return 0;
}
