/* SPDX-License-Identifier: MIT */
/* For the tests of the `qwen3moe` command: runs it, and checks its status, output and messages.
 *
 * The shell runs the command in a folder of the test's own, which the test names by FOLDER
 * ("x.tmp/") before it includes this; there `tiny` is a copy of golden/tiny, w an empty folder. */
#ifndef Q3_TESTS_COMMAND_H
#define Q3_TESTS_COMMAND_H

#include "qwen3moe.h"
#include "t.h"

#include <math.h>
#include <stdarg.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *command_path, *golden_path;

/* ==== Running the command ===================================================================== */

/* What the last run left. */
static struct {
    char line[2048]; /* the arguments, for messages */
    int status;
    char *out, *err; /* ended by a zero that size does not count */
    size_t size, err_size;
} last;

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    size_t used = 0, room = 1 << 16;
    char *bytes = malloc(room);
    if (file == NULL || bytes == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    for (size_t n = 1; n > 0; used += n) {
        if (room - used < 4096) bytes = realloc(bytes, room *= 2);
        if (bytes == NULL) exit(1);
        n = fread(bytes + used, 1, room - used - 1, file);
    }
    fclose(file);
    bytes[used] = 0;
    *size = used;
    return bytes;
}

static void write_file(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(1);
    }
}

static void write_text(const char *path, const char *text)
{
    write_file(path, text, strlen(text));
}

/* Runs a line of the shell in FOLDER, where $Q is the command and $G golden/. */
static void shell(const char *line)
{
    char whole[4096];
    size_t size;
    snprintf(whole, sizeof whole,
             "cd " FOLDER " && Q='%s' G='%s' && { %s\n} >out 2>err </dev/null; echo $? >status",
             command_path, golden_path, line);
    if (system(whole) != 0) {
        fprintf(stderr, "the shell does not run: %s\n", whole);
        exit(1);
    }
    snprintf(last.line, sizeof last.line, "%.2000s", line);
    free(last.out);
    free(last.err);
    char *status = read_file(FOLDER "status", &size);
    last.status = atoi(status);
    free(status);
    last.out = read_file(FOLDER "out", &last.size);
    last.err = read_file(FOLDER "err", &last.err_size);
}

/* Runs the command with these arguments, words of the shell. */
#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
static void run(const char *format, ...)
{
    char arguments[1900], line[2000];
    va_list values;
    va_start(values, format);
    vsnprintf(arguments, sizeof arguments, format, values);
    va_end(values);
    snprintf(line, sizeof line, "\"$Q\" %s", arguments);
    shell(line);
}

/* The last run succeeded, said nothing on standard error, and printed want (NULL: anything). */
static void succeeds(const char *want)
{
    CHECKF(last.status == 0 && last.err_size == 0, "%s: status %d, standard error \"%s\"",
           last.line,
           last.status, last.err);
    if (want != NULL)
        CHECKF(last.size == strlen(want) && memcmp(last.out, want, last.size) == 0,
               "%s: got \"%s\", want \"%s\"", last.line, last.out, want);
}

/* The last run failed with one line on standard error that holds `part`. */
static void fails_with(const char *part)
{
    const char *newline = strchr(last.err, '\n');
    bool one_line = newline != NULL && newline[1] == 0 && strlen(last.err) == last.err_size;
    CHECKF(last.status == 2, "%s: status %d", last.line, last.status);
    CHECKF(one_line && strncmp(last.err, "qwen3moe: ", 10) == 0, "%s: standard error \"%s\"",
           last.line, last.err);
    CHECKF(strstr(last.err, part) != NULL, "%s: got \"%s\", want \"%s\"", last.line, last.err,
           part);
}

/* The same with the whole line and nothing on standard output. */
static void fails(const char *message)
{
    char line[1024];
    snprintf(line, sizeof line, "qwen3moe: %s\n", message);
    fails_with(message);
    CHECKF(strcmp(last.err, line) == 0, "%s: got \"%s\", want \"%s\"", last.line, last.err, line);
    CHECKF(last.size == 0, "%s: printed \"%s\"", last.line, last.out);
}

typedef struct failure {
    const char *arguments, *message;
} failure;

static void all_fail(const failure *failures, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        run("%s", failures[i].arguments);
        fails(failures[i].message);
    }
}

/* ==== golden/hf/tiny ========================================================================== */

static q3_tensors *open_tensors(const char *path)
{
    q3_tensors *tensors;
    q3_error error;
    if (q3_tensors_open(&tensors, path, &error) == Q3_OK) return tensors;
    fprintf(stderr, "%s\n", error.text);
    exit(1);
}

static q3_tensors *open_golden(const char *file)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/hf/tiny/%s.safetensors", golden_path, file);
    return open_tensors(path);
}

static const q3_entry *find(const q3_tensors *tensors, const char *name)
{
    const q3_entry *entry = q3_tensors_find(tensors, name);
    if (entry != NULL) return entry;
    fprintf(stderr, "no tensor %s\n", name);
    exit(1);
}

static int32_t *ids_of(const q3_tensors *tensors, const char *name, size_t *count)
{
    const q3_entry *entry = find(tensors, name);
    *count = (size_t)entry->shape[0];
    int32_t *ids = malloc((*count + 1) * sizeof *ids);
    if (ids == NULL) exit(1);
    for (size_t i = 0; i < *count; i++) {
        int64_t id;
        q3_entry_integers(&id, entry, i, 1);
        ids[i] = (int32_t)id;
    }
    return ids;
}

static float *floats_of(const q3_tensors *tensors, const char *name, size_t *count)
{
    const q3_entry *entry = find(tensors, name);
    *count = 1;
    for (size_t i = 0; i < entry->rank; i++) *count *= (size_t)entry->shape[i];
    float *values = malloc((*count + 1) * sizeof *values);
    if (values == NULL) exit(1);
    q3_entry_floats(values, entry, 0, *count);
    return values;
}

/* ids as text with this between them. Valid until the next call. */
static const char *spell(const int32_t *ids, size_t count, const char *between)
{
    static char text[8192];
    size_t at = 0;
    text[0] = 0;
    for (size_t i = 0; i < count; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%ld", i > 0 ? between : "",
                               (long)ids[i]);
    return text;
}

/* COMMAND and GOLDEN, absolute paths, of the test's own command line; makes FOLDER. */
static void set_up(int argc, char **argv)
{
    CHECK(argc == 3 && strchr(argv[1], '\'') == NULL && strchr(argv[2], '\'') == NULL);
    if (argc != 3) exit(1);
    command_path = argv[1];
    golden_path = argv[2];
    if (system("rm -rf " FOLDER " && mkdir " FOLDER " " FOLDER "w") != 0) exit(1);
    shell("cp -R \"$G/tiny\" tiny && printf 'In the beginning' >beginning");
    succeeds("");
    if (last.status != 0) exit(1);
}

/* golden/tiny with its weights, for a float32 run. */
static q3_model *load_tiny(void)
{
    q3_model *model;
    q3_error error;
    q3_dtype dtype = Q3_F32;
    char path[1024];
    snprintf(path, sizeof path, "%s/tiny", golden_path);
    if (q3_model_open(&model, path, &error) == Q3_OK &&
        q3_model_load(model, &dtype, 0, q3_model_config(model)->num_hidden_layers, &error) == Q3_OK)
        return model;
    fprintf(stderr, "%s\n", error.text);
    exit(1);
}

#endif
