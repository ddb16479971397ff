/* SPDX-License-Identifier: MIT */
/* resume.c - a run that goes on at the layer where it was interrupted. */
#include "command/command.h"

#include "judge/report.h"

#include <stdlib.h>
#include <string.h>

q3_status resumable_open(resumable *run, const q3_session *session, const char *file,
                         q3_error *error)
{
    *run = (resumable){.session = session, .part = q3_join(file, ".part", ""),
                       .path = q3_join(file, ".part", ".state")};
    if (run->part == NULL || run->path == NULL) return q3_no_memory(error, file);
    resumable_add(run, "format", "qwen3moe-unfinished-1");
    resumable_add(run, "producer", "qwen3moe " Q3_VERSION);
    return Q3_OK;
}

void resumable_add(resumable *run, const char *key, const char *value)
{
    Q3_CHECK(2 * run->pairs + 2 < sizeof run->metadata / sizeof run->metadata[0]);
    run->metadata[2 * run->pairs] = key;
    run->metadata[2 * run->pairs + 1] = value;
    run->pairs++;
}

/* The hidden states are the file's one tensor. */
static q3_entry hidden_entry(const resumable *run)
{
    const q3_session *s = run->session;
    return (q3_entry){.name = "hidden", .dtype = s->run.dtype, .rank = 2,
                      .shape = {s->run.rows, s->config->hidden_size}};
}

/* Which weights the last layer had that is through. */
static void fingerprint(char text[Q3_FINGERPRINT_SIZE], const resumable *run, size_t next)
{
    const q3_session *s = run->session;
    q3_fingerprint_layer(text, s->config, q3_model_weights(s->model), next - 1);
}

static q3_status check_pair(const resumable *run, const q3_tensors *file, const char *key,
                            const char *expected, q3_error *error)
{
    const char *found = q3_tensors_metadata(file, key);
    if (found != NULL && strcmp(found, expected) == 0) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "%s: %s: found %.120s, expected %.120s as in this run; remove the file to start "
                   "from the beginning", run->path, key, found != NULL ? found : "none", expected);
}

/* The layer to go on with is one that the run has, behind its first. */
static q3_status read_next(const resumable *run, const q3_tensors *file, size_t *next,
                           q3_error *error)
{
    const q3_run *r = &run->session->run;
    const char *text = q3_tensors_metadata(file, "next");
    uint64_t number = 0;
    if (text == NULL || !parse_integer(text, text + strlen(text), &number) ||
        number <= r->first_layer || number >= r->end_layer)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: next: found %.40s, expected a layer from %zu to "
                       "%zu", run->path, text != NULL ? text : "none", r->first_layer + 1,
                       r->end_layer - 1);
    *next = (size_t)number;
    return Q3_OK;
}

static q3_status read_state(const resumable *run, const q3_tensors *file, size_t *next,
                            q3_error *error)
{
    char weights[Q3_FINGERPRINT_SIZE];
    const q3_entry *hidden = q3_tensors_find(file, "hidden"), expected = hidden_entry(run);
    q3_status status = Q3_OK;
    for (size_t i = 0; i < run->pairs && status == Q3_OK; i++)
        status = check_pair(run, file, run->metadata[2 * i], run->metadata[2 * i + 1], error);
    if (status == Q3_OK) status = read_next(run, file, next, error);
    if (status != Q3_OK) return status;
    fingerprint(weights, run, *next);
    status = check_pair(run, file, "weights", weights, error);
    if (status != Q3_OK) return status;
    if (hidden == NULL || hidden->dtype != expected.dtype || hidden->rank != 2 ||
        hidden->shape[0] != expected.shape[0] || hidden->shape[1] != expected.shape[1])
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: hidden: missing, or of another shape or dtype than this run's",
                       run->path);
    q3_entry_floats(run->session->hidden, hidden, 0,
                    (size_t)(expected.shape[0] * expected.shape[1]));
    return Q3_OK;
}

q3_status resumable_read(const resumable *run, size_t *next, q3_error *error)
{
    q3_tensors *file = NULL;
    *next = 0;
    if (!q3_exists(run->path) || !q3_exists(run->part)) return Q3_OK;
    q3_status status = q3_tensors_open(&file, run->path, error);
    if (status == Q3_OK) status = read_state(run, file, next, error);
    q3_tensors_close(file);
    return status;
}

q3_status resumable_save(const resumable *run, size_t next, q3_error *error)
{
    char number[24], weights[Q3_FINGERPRINT_SIZE];
    const q3_session *s = run->session;
    const q3_entry entry = hidden_entry(run);
    resumable with = *run;
    q3_writer *writer = NULL;
    snprintf(number, sizeof number, "%zu", next);
    fingerprint(weights, run, next);
    resumable_add(&with, "weights", weights);
    resumable_add(&with, "next", number);
    q3_status status = q3_writer_go_on(&writer, run->path, &entry, 1, with.metadata, true, error);
    if (status != Q3_OK) return status;
    status = q3_writer_floats(writer, 0, 0, s->hidden, s->run.rows * s->config->hidden_size, error);
    if (status == Q3_OK) status = q3_writer_sync(writer, error);
    if (status == Q3_OK) return q3_writer_commit(writer, error);
    q3_writer_abandon(writer);
    return status;
}

void resumable_remove(const resumable *run)
{
    remove(run->path);
}

void resumable_close(resumable *run)
{
    free(run->part);
    free(run->path);
    *run = (resumable){.session = NULL};
}
