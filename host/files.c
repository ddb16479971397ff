/* SPDX-License-Identifier: MIT */
/* files.c - files mapped for reading, and files written beside their target that take its place
 * when complete. */
#include "host/system.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Who is told ============================================================================= */

static const q3_watch *watch; /* NULL in every program but the command */

void q3_watch_files(const q3_watch *by)
{
    watch = by;
}

static void tell(q3_temporary state, const char *path)
{
    if (watch != NULL) watch->temporary(state, path);
}

/* ==== Files in ================================================================================ */

/* Reads what is left of a file, which may have no size, such as a pipe, and puts a zero behind
 * it. */
static q3_status read_all(q3_buffer *bytes, FILE *file, const char *path, q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t got = 1; got > 0 && status == Q3_OK; bytes->count += got) {
        size_t room = bytes->capacity - bytes->count;
        if (room < 2) room = q3_reserve(bytes, 65536, 1) ? bytes->capacity - bytes->count : 0;
        if (room == 0) status = q3_no_memory(error, path);
        got = room > 0 ? fread((uint8_t *)bytes->data + bytes->count, 1, room - 1, file) : 0;
    }
    if (status == Q3_OK && ferror(file)) status = q3_fail_file(error, "read", path);
    if (status == Q3_OK) {
        ((uint8_t *)bytes->data)[bytes->count] = 0;
        return Q3_OK;
    }
    free(bytes->data);
    *bytes = (q3_buffer){0};
    return status;
}

q3_status q3_map(q3_mapping *mapping, const char *path, q3_error *error)
{
    q3_mapping new = {0};
    q3_buffer bytes = {0};
    FILE *file;
    errno = 0;
    q3_status status = q3_open_file(&file, path, false, error);
    if (status != Q3_OK) return status;
    status = q3_map_file(&new, file, path, error);
    if (status == Q3_OK && !new.mapped) status = read_all(&bytes, file, path, error);
    fclose(file); /* the mapping stays */
    if (status != Q3_OK) return status;
    if (!new.mapped)
        new = (q3_mapping){.data = bytes.data, .size = bytes.count, .base = bytes.data};
    else if (watch != NULL)
        watch->mapped(new.data, new.size, path);
    *mapping = new;
    return Q3_OK;
}

q3_status q3_read_whole(uint8_t **bytes, size_t *length, const char *path, q3_error *error)
{
    bool standard = strcmp(path, "-") == 0;
    q3_buffer all = {0};
    FILE *file = stdin;
    q3_status status = Q3_OK;
    errno = 0;
    if (!standard) status = q3_open_file(&file, path, true, error);
    if (status != Q3_OK) return status;
    if (standard) q3_binary(stdin);
    status = read_all(&all, file, standard ? "standard input" : path, error);
    if (!standard) fclose(file);
    if (status != Q3_OK) return status;
    *bytes = all.data;
    *length = all.count;
    return Q3_OK;
}

void q3_unmap(q3_mapping *mapping)
{
    if (mapping->mapped) {
        q3_unmap_file(mapping);
        if (watch != NULL) watch->unmapped(mapping->data);
    } else {
        free(mapping->base);
    }
    *mapping = (q3_mapping){0};
}

/* ==== Files out =============================================================================== */

struct q3_output {
    FILE *file;       /* of the temporary; NULL: what is put is kept in memory, for a stream */
    FILE *stream;     /* standard output, a device or a pipe, which cannot seek */
    char *path, *target, *temporary; /* target: where path's links lead */
    uint64_t at, end; /* where the next byte goes, and how long the file is */
    bool kept;        /* when it is abandoned: to go on with */
    q3_buffer memory; /* of bytes */
};

bool q3_is_earlier(const char *path, const char *mark)
{
    char head[513];
    FILE *file;
    if (!q3_exists(path)) return true;
    if (q3_open_file(&file, path, false, NULL) != Q3_OK) return false;
    size_t length = fread(head, 1, sizeof head - 1, file), room = strlen(mark);
    bool found = length == 0 && !ferror(file);
    for (size_t i = 0; !found && i + room <= length; i++) found = memcmp(head + i, mark, room) == 0;
    fclose(file);
    return found;
}

/* Memory, and a stream of its own; the file is closed by then. */
static void output_free(q3_output *output)
{
    if (output->stream != NULL && output->stream != stdout) fclose(output->stream);
    free(output->path);
    free(output->target);
    free(output->temporary);
    free(output->memory.data);
    free(output);
}

/* An output for this path, without a file yet. */
static q3_status new_output(q3_output **output, const char *path, bool standard, q3_error *error)
{
    q3_status status = Q3_OK;
    q3_output *new = calloc(1, sizeof *new);
    if (new == NULL) return q3_no_memory(error, path);
    new->path = q3_join(standard ? "standard output" : path, "", "");
    new->target = standard ? q3_join(path, "", "") : q3_resolve(path);
    if (new->path == NULL || new->target == NULL)
        status = q3_no_memory(error, path);
    else if (standard)
        new->stream = stdout;
    else
        status = q3_open_stream(&new->stream, new->target, error);
    if (status == Q3_OK)
        *output = new;
    else
        output_free(new);
    return status;
}

q3_status q3_output_open(q3_output **output, const char *path, q3_error *error)
{
    q3_output *new = NULL;
    char number[16];
    errno = 0;
    q3_status status = new_output(&new, path, q3_is_standard(path), error);
    if (status != Q3_OK) return status;
    for (unsigned i = 0; new->stream == NULL && i < 1000 && new->file == NULL; i++) {
        q3_print(number, sizeof number, "%u", i);
        free(new->temporary);
        new->temporary = q3_join(new->target, ".tmp", number);
        if (new->temporary == NULL) break;
        tell(Q3_TEMPORARY_BEGINS, new->temporary);
        errno = 0;
        new->file = q3_create_new(new->temporary);
        int why = errno;
        tell(new->file != NULL ? Q3_TEMPORARY_THERE : Q3_TEMPORARY_GONE, new->temporary);
        errno = why;
        if (new->file == NULL && errno != EEXIST) break;
    }
    if (new->stream == NULL && new->file == NULL) {
        status = new->temporary != NULL ? q3_fail_file(error, "create", path)
                                        : q3_no_memory(error, path);
        output_free(new);
        return status;
    }
    if (new->file != NULL) q3_take_mode(new->file, new->target, true);
    *output = new;
    return Q3_OK;
}

q3_status q3_output_go_on(q3_output **output, const char *path, bool fresh, q3_error *error)
{
    q3_output *new = NULL;
    errno = 0;
    q3_status status = new_output(&new, path, false, error);
    if (status != Q3_OK) return status;
    new->kept = true;
    if (new->stream == NULL) new->temporary = q3_join(new->target, ".part", "");
    if (new->stream != NULL) {
        status = q3_fail(error, Q3_ERROR_FILE, "cannot write %.300s: it is a device or a pipe, "
                         "which cannot be gone on with", path);
    } else if (new->temporary == NULL) {
        status = q3_no_memory(error, path);
    } else {
        errno = 0;
        new->file = q3_open_again(new->temporary, fresh);
        if (new->file == NULL)
            status = errno == ETXTBSY
                   ? q3_fail(error, Q3_ERROR_FILE, "cannot write %.300s: another run writes it",
                             new->temporary)
                   : q3_fail_file(error, "create", new->temporary);
    }
    if (status == Q3_OK && !q3_file_size(new->file, &new->end))
        status = q3_fail_file(error, "read", new->temporary);
    new->at = new->end;
    if (status != Q3_OK) {
        q3_output_abandon(new);
        return status;
    }
    q3_take_mode(new->file, new->target, true);
    *output = new;
    return Q3_OK;
}

q3_status q3_output_sync(q3_output *output, q3_error *error)
{
    errno = 0;
    if (output->file == NULL || q3_sync_file(output->file)) return Q3_OK;
    return q3_fail_file(error, "write", output->path);
}

/* Bytes at the place where the last ones ended; false if the system refuses. */
static bool write_at_end(q3_output *output, const uint8_t *bytes, size_t count)
{
    if (fwrite(bytes, 1, count, output->file) != count) return false;
    output->at += count;
    if (output->at > output->end) output->end = output->at;
    return true;
}

/* The same for a stream; what grows is zero until something is put there. */
static q3_status put_in_memory(q3_output *output, uint64_t offset, const uint8_t *bytes,
                               size_t count, q3_error *error)
{
    q3_buffer *memory = &output->memory;
    bool fits = offset <= SIZE_MAX / 2 && count <= SIZE_MAX / 2 - (size_t)offset;
    size_t end = fits ? (size_t)offset + count : 0;
    size_t more = end > memory->count ? end - memory->count : 0;
    if (!fits || !q3_reserve(memory, more, 1)) return q3_no_memory(error, output->path);
    uint8_t *data = memory->data;
    if (more > 0) memset(data + memory->count, 0, more);
    memory->count += more;
    if (count > 0) memcpy(data + offset, bytes, count);
    return Q3_OK;
}

q3_status q3_output_put(q3_output *output, uint64_t offset, const uint8_t *bytes, size_t count,
                        q3_error *error)
{
    static const uint8_t zeros[4096];
    uint64_t start = offset < output->end ? offset : output->end;
    bool ok = true;
    if (output->file == NULL) return put_in_memory(output, offset, bytes, count, error);
    errno = 0;
    if (start != output->at) {
        ok = q3_seek_to(output->file, start);
        output->at = start;
    }
    while (ok && output->at < offset) {
        uint64_t gap = offset - output->at;
        ok = write_at_end(output, zeros, gap < sizeof zeros ? (size_t)gap : sizeof zeros);
    }
    ok = ok && write_at_end(output, bytes, count);
    return ok ? Q3_OK : q3_fail_file(error, "write", output->path);
}

/* What was kept in memory, behind what was printed before. */
static q3_status commit_stream(q3_output *output, q3_error *error)
{
    size_t size = output->memory.count;
    bool own = output->stream != stdout;
    bool written = (!own || fflush(stdout) == 0) &&
        fwrite(output->memory.data, 1, size, output->stream) == size && fflush(output->stream) == 0;
    q3_status status = written ? Q3_OK : q3_fail_file(error, "write", output->path);
    output_free(output);
    return status;
}

q3_status q3_output_commit(q3_output *output, q3_error *error)
{
    q3_status status = Q3_OK;
    errno = 0;
    if (output->stream != NULL) return commit_stream(output, error);
    q3_take_mode(output->file, output->target, false);
    errno = 0;
    bool written = fclose(output->file) == 0;
    if (!written || !q3_replace_file(output->temporary, output->target)) {
        status = q3_fail_file(error, written ? "replace" : "write", output->path);
        if (!output->kept) q3_remove(output->temporary);
    }
    if (!output->kept) tell(Q3_TEMPORARY_GONE, output->temporary);
    output_free(output);
    return status;
}

/* The new file is there already: under the other path's name too, if they are one. What a path
 * names that lies where it is now would be lost. */
bool q3_output_is(const q3_output *output, const char *path)
{
    if (output->stream == stdout || q3_is_standard(path))
        return output->stream == stdout && q3_is_standard(path);
    if (output->stream != NULL) return strcmp(output->target, path) == 0;
    char *target = q3_resolve(path), *other = NULL;
    if (target != NULL) other = q3_join(target, output->temporary + strlen(output->target), "");
    bool is = q3_same_file(output->target, path) ||
              q3_same_file(output->temporary, path) ||
              (other != NULL && q3_same_file(output->temporary, other));
    free(target);
    free(other);
    return is;
}

void q3_output_abandon(q3_output *output)
{
    if (output == NULL) return;
    if (output->file != NULL) {
        fclose(output->file);
        if (!output->kept) q3_remove(output->temporary);
        if (!output->kept) tell(Q3_TEMPORARY_GONE, output->temporary);
    }
    output_free(output);
}
