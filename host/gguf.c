/* SPDX-License-Identifier: MIT */
/* gguf.c - llama.cpp's GGUF files, versions 2 and 3, whole or in parts. All numbers are
 * little-endian.
 *
 *   4, 4, 8, 8 bytes  "GGUF", version, how many tensors, how many values of metadata
 *   each value        key, type, value. A text is its length (8 bytes) and its bytes; an array its
 *                     elements' type (4), how many there are (8), and the elements
 *   each tensor       name, number of axes (4), axes (8 each, the fastest first), type (4), its
 *                     offset (8)
 *   the tensors       from the next multiple of general.alignment (32 if absent) on, which offsets
 *                     count from; each starts at the first multiple behind the one before
 *
 * As strict as llama.cpp's own reader, and the file may not be longer than its tensors. */
#include "host/gguf.h"
#include "host/quants.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION_FIRST = 2, VERSION_LAST = 3, MOST_DIMS = 4, NAME_ROOM = 64 };

typedef struct tensor {
    q3_gguf_tensor shown;
    char name[NAME_ROOM];
    uint64_t offset, bytes;
    size_t part;
    const q3_block_format *format; /* NULL: its elements are floats of their own */
    q3_quantized quantized;        /* what entry.data points to otherwise */
} tensor;

typedef struct part {
    char *path;
    q3_mapping mapping;
} part;

struct q3_gguf {
    part *parts;
    size_t part_count;
    q3_buffer values;  /* of q3_gguf_value: the first part's */
    q3_buffer tensors; /* of tensor: all parts', by name when open */
};

/* ==== Reading ================================================================================= */

/* A part that is being read. What it takes is checked against the file's end. */
typedef struct reader {
    q3_gguf *gguf;
    const char *path;
    const uint8_t *data;
    size_t size, at;
    char thing[96];   /* what is being read, for messages */
    q3_status status; /* of what went wrong */
    q3_error *error;
} reader;

uint64_t q3_gguf_load(const uint8_t *bytes, size_t size)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < size; i++) bits |= (uint64_t)bytes[i] << (8 * i);
    return bits;
}

/* "FILE: THING: found the file's end, ..."; always NULL. */
static const uint8_t *fail_end(const reader *r, uint64_t count, size_t size)
{
    count = count <= UINT64_MAX / size ? count * size : UINT64_MAX;
    q3_fail(r->error, Q3_ERROR_INPUT, "%.200s: %.90s: found the file's end at byte %" PRIu64
            ", expected %" PRIu64 " more behind byte %" PRIu64, r->path, r->thing,
            (uint64_t)r->size, count, (uint64_t)r->at);
    return NULL;
}

/* The next `count` elements of so many bytes; NULL: the file ends before, and error says so. */
static const uint8_t *take(reader *r, uint64_t count, size_t size)
{
    const uint8_t *bytes = r->data + r->at;
    if (count > (r->size - r->at) / size)
        return fail_end(r, count, size);
    r->at += (size_t)count * size;
    return bytes;
}

static bool take_number(reader *r, size_t size, uint64_t *number)
{
    const uint8_t *bytes = take(r, 1, size);
    if (bytes != NULL) *number = q3_gguf_load(bytes, size);
    return bytes != NULL;
}

static bool take_text(reader *r, q3_span *t)
{
    uint64_t length = 0;
    if (!take_number(r, 8, &length)) return false;
    t->bytes = take(r, length, 1);
    t->length = (size_t)length;
    return t->bytes != NULL;
}

size_t q3_gguf_size(q3_gguf_type type)
{
    static const uint8_t size[Q3_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < Q3_GGUF_TYPES ? size[type] : 0;
}

/* How many bytes of a text messages show. */
static int shown(q3_span t)
{
    return (int)(t.length < 60 ? t.length : 60);
}

q3_span q3_gguf_string(const uint8_t *data)
{
    return (q3_span){data + 8, (size_t)q3_gguf_load(data, 8)};
}

bool q3_span_is(q3_span span, const char *text)
{
    return span.length == strlen(text) && memcmp(span.bytes, text, span.length) == 0;
}

/* "FILE: THING: found NUMBER, expected WHAT"; always false. */
static bool refuse_number(const reader *r, uint64_t number, const char *expected)
{
    q3_fail(r->error, Q3_ERROR_INPUT, "%.200s: %.90s: found %" PRIu64 ", expected %s", r->path,
            r->thing, number, expected);
    return false;
}

/* Room for one more, where the count in the file is not to be trusted yet. */
static bool make_room(reader *r, q3_buffer *buffer, size_t size)
{
    if (!q3_reserve(buffer, 1, size)) r->status = q3_no_memory(r->error, r->path);
    return r->status == Q3_OK;
}

/* The elements of a value, whose type and count are known: they must lie in the file, texts too. */
static bool take_elements(reader *r, q3_gguf_value *v, uint64_t count)
{
    v->data = r->data + r->at;
    v->count = (size_t)count;
    if (v->type != Q3_GGUF_STRING) {
        if (take(r, count, q3_gguf_size(v->type)) == NULL) return false;
        for (size_t i = 0; v->type == Q3_GGUF_BOOL && i < v->count; i++)
            if (v->data[i] > 1) return refuse_number(r, v->data[i], "0 or 1, since it is a bool");
        return true;
    }
    if (count > (r->size - r->at) / 8) return fail_end(r, count, 8);
    q3_span t;
    for (size_t i = 0; i < v->count; i++)
        if (!take_text(r, &t)) return false;
    return true;
}

/* Key, type, value. */
static bool read_value(reader *r, q3_gguf_value *v)
{
    uint64_t type = 0, count = 1;
    if (!take_text(r, &v->key)) return false;
    if (v->key.length == 0) return refuse_number(r, 0, "a key of at least one byte");
    snprintf(r->thing, sizeof r->thing, "%.*s", shown(v->key), (const char *)v->key.bytes);
    if (!take_number(r, 4, &type)) return false;
    v->array = type == Q3_GGUF_ARRAY;
    if (v->array && (!take_number(r, 4, &type) || !take_number(r, 8, &count))) return false;
    if (type >= Q3_GGUF_TYPES || type == Q3_GGUF_ARRAY)
        return refuse_number(r, type, v->array ? "elements of a type from 0 to 12, no arrays"
                                               : "a type from 0 to 12");
    v->type = (q3_gguf_type)type;
    return take_elements(r, v, count);
}

/* For qsort: by key. */
static int compare_values(const void *a, const void *b)
{
    const q3_gguf_value *x = a, *y = b;
    size_t n = x->key.length < y->key.length ? x->key.length : y->key.length;
    int order = memcmp(x->key.bytes, y->key.bytes, n);
    return order != 0 ? order : (x->key.length > y->key.length) - (x->key.length < y->key.length);
}

/* All values, by key, each once. */
static bool read_values(reader *r, uint64_t count, q3_buffer *values)
{
    for (uint64_t i = 0; i < count; i++) {
        snprintf(r->thing, sizeof r->thing, "metadata value %" PRIu64, i);
        if (!make_room(r, values, sizeof(q3_gguf_value))) return false;
        if (!read_value(r, (q3_gguf_value *)values->data + values->count)) return false;
        values->count++;
    }
    const q3_gguf_value *v = values->data;
    if (count > 0) qsort(values->data, values->count, sizeof *v, compare_values);
    for (size_t i = 1; i < values->count; i++) {
        if (compare_values(&v[i - 1], &v[i]) != 0) continue;
        q3_fail(r->error, Q3_ERROR_INPUT, "%.200s: %.*s: found twice, expected each key once",
                r->path, shown(v[i].key), (const char *)v[i].key.bytes);
        return false;
    }
    return true;
}

/* The value of a key, or NULL. */
static const q3_gguf_value *find_in(const q3_buffer *values, const char *key)
{
    const q3_gguf_value *v = values->data;
    for (size_t i = 0; i < values->count; i++)
        if (q3_span_is(v[i].key, key)) return &v[i];
    return NULL;
}

bool q3_gguf_integer(const q3_gguf_value *v, uint64_t *number)
{
    if (v == NULL || v->array || v->type == Q3_GGUF_STRING || v->type == Q3_GGUF_BOOL ||
        v->type == Q3_GGUF_F32 || v->type == Q3_GGUF_F64)
        return false;
    *number = q3_gguf_load(v->data, q3_gguf_size(v->type));
    bool has_sign = v->type == Q3_GGUF_I8 || v->type == Q3_GGUF_I16 || v->type == Q3_GGUF_I32 ||
                    v->type == Q3_GGUF_I64;
    return !has_sign || *number >> (8 * q3_gguf_size(v->type) - 1) == 0;
}

/* general.alignment. */
static bool read_alignment(reader *r, const q3_buffer *values, uint64_t *alignment)
{
    static const char key[] = "general.alignment";
    const q3_gguf_value *v = find_in(values, key);
    *alignment = 32;
    if (v == NULL) return true;
    snprintf(r->thing, sizeof r->thing, "%s", key);
    bool is = q3_gguf_integer(v, alignment) && v->type == Q3_GGUF_U32;
    if (is && *alignment != 0 && (*alignment & (*alignment - 1)) == 0) return true;
    return refuse_number(r, is ? *alignment : 0, "a power of two of type uint32");
}

/* The tensor's type: floats, or blocks. */
static bool read_type(reader *r, tensor *t, uint64_t *elements, uint64_t *bytes)
{
    uint64_t type = 0;
    q3_dtype *dtype = &t->shown.entry.dtype;
    if (!take_number(r, 4, &type)) return false;
    *dtype = type == 0 ? Q3_F32 : type == 1 ? Q3_F16 : type == 30 ? Q3_BF16 : Q3_QUANTIZED;
    *elements = 1;
    *bytes = type == 0 ? 4 : 2;
    if (*dtype != Q3_QUANTIZED) return true;
    t->format = q3_block_find((uint32_t)type);
    if (t->format == NULL)
        return refuse_number(r, type, "the number of a type of weights (MODEL.md section 11)");
    *elements = t->format->elements;
    *bytes = t->format->bytes;
    return true;
}

/* The axes, here the slowest first, and how many bytes they are. */
static bool read_axes(reader *r, tensor *t)
{
    q3_entry *entry = &t->shown.entry;
    uint64_t rank = 0, elements = 1, block, size;
    if (!take_number(r, 4, &rank)) return false;
    if (rank < 1 || rank > MOST_DIMS) return refuse_number(r, rank, "1 to 4 axes");
    entry->rank = (size_t)rank;
    for (size_t i = entry->rank; i-- > 0;) {
        uint64_t *axis = &entry->shape[i];
        if (!take_number(r, 8, axis)) return false;
        if (*axis == 0 || *axis > INT64_MAX / elements)
            return refuse_number(r, *axis, "an axis above 0, and fewer than 2^63 elements");
        elements *= *axis;
    }
    if (!read_type(r, t, &block, &size)) return false;
    uint64_t columns = entry->shape[entry->rank - 1];
    if (columns % block != 0) return refuse_number(r, columns, "rows of whole blocks");
    if (elements / block > INT64_MAX / size || (size_t)elements != elements)
        return refuse_number(r, elements, "fewer elements: their bytes cannot be counted");
    t->bytes = elements / block * size;
    return true;
}

/* Name, axes, type, offset, which must be `*end`, where the tensors before it end. */
static bool read_tensor(reader *r, tensor *t, uint64_t alignment, uint64_t *end)
{
    q3_span name;
    if (!take_text(r, &name)) return false;
    if (name.length == 0 || name.length >= NAME_ROOM || memchr(name.bytes, 0, name.length) != NULL)
        return refuse_number(r, name.length, "a name of 1 to 63 bytes, none of them 0");
    memcpy(t->name, name.bytes, name.length);
    snprintf(r->thing, sizeof r->thing, "%s", t->name);
    t->part = r->gguf->part_count - 1;
    if (!read_axes(r, t) || !take_number(r, 8, &t->offset)) return false;
    if (t->offset != *end)
        return refuse_number(r, t->offset, "an offset where the tensor before it ends");
    if (t->bytes > INT64_MAX - alignment - *end)
        return refuse_number(r, t->bytes, "fewer bytes: 2^63 are too many");
    *end = (*end + t->bytes + alignment - 1) / alignment * alignment;
    return true;
}

/* The tensors of one part: the last one ends in the file, and nothing follows but its padding. */
static bool read_tensors(reader *r, uint64_t count, uint64_t alignment)
{
    q3_buffer *tensors = &r->gguf->tensors;
    size_t first = tensors->count;
    uint64_t end = 0;
    for (uint64_t i = 0; i < count; i++) {
        snprintf(r->thing, sizeof r->thing, "tensor %" PRIu64, i);
        if (!make_room(r, tensors, sizeof(tensor))) return false;
        tensor *t = (tensor *)tensors->data + tensors->count;
        memset(t, 0, sizeof *t);
        if (!read_tensor(r, t, alignment, &end)) return false;
        tensors->count++;
    }
    uint64_t gap = (alignment - r->at % alignment) % alignment, left = r->size - r->at;
    left = left > gap ? left - gap : 0;
    for (size_t i = first; i < tensors->count; i++) {
        tensor *t = (tensor *)tensors->data + i;
        snprintf(r->thing, sizeof r->thing, "%s", t->name);
        if (t->offset > left || t->bytes > left - t->offset)
            return refuse_number(r, left, "more bytes of tensors: the file ends within this one");
        t->shown.data = r->data + r->at + gap + t->offset;
        t->shown.size = (size_t)t->bytes;
    }
    snprintf(r->thing, sizeof r->thing, "file");
    return left <= end || refuse_number(r, left, "no bytes of tensors behind the last one's end");
}

/* Magic bytes, version, counts; then the values, and the tensors if wanted. */
static bool read_part(reader *r, q3_buffer *values, bool only_metadata)
{
    uint64_t version = 0, tensors = 0, count = 0, alignment;
    snprintf(r->thing, sizeof r->thing, "header");
    const uint8_t *magic = take(r, 4, 1);
    if (magic == NULL || !take_number(r, 4, &version)) return false;
    if (memcmp(magic, "GGUF", 4) != 0) {
        q3_fail(r->error, Q3_ERROR_INPUT, "%.300s: first bytes: found \"%.4s\", expected \"GGUF\"",
                r->path, (const char *)magic);
        return false;
    }
    snprintf(r->thing, sizeof r->thing, "version");
    if (version != 0 && version % 0x1000000 == 0)
        return refuse_number(r, version, "2 or 3, little-endian: big-endian files are not read");
    if (version < VERSION_FIRST || version > VERSION_LAST)
        return refuse_number(r, version, "2 or 3");
    snprintf(r->thing, sizeof r->thing, "header");
    if (!take_number(r, 8, &tensors) || !take_number(r, 8, &count) ||
        !read_values(r, count, values) || !read_alignment(r, values, &alignment))
        return false;
    return only_metadata || read_tensors(r, tensors, alignment);
}

/* Opens one part behind those that are open; its values are the caller's to free. */
static q3_status open_part(q3_gguf *g, const char *path, q3_buffer *values, bool only_metadata,
                           q3_error *error)
{
    part *parts = realloc(g->parts, (g->part_count + 1) * sizeof *parts);
    if (parts == NULL) return q3_no_memory(error, path);
    g->parts = parts;
    part *p = &parts[g->part_count++];
    *p = (part){.path = q3_join(path, "", "")};
    if (p->path == NULL) return q3_no_memory(error, path);
    q3_status status = q3_map(&p->mapping, path, error);
    if (status != Q3_OK) return status;
    reader r = {.gguf = g, .path = path, .data = p->mapping.data, .size = p->mapping.size,
                .error = error};
    if (read_part(&r, values, only_metadata)) return Q3_OK;
    return r.status != Q3_OK ? r.status : Q3_ERROR_INPUT;
}

/* Gives back everything but g itself. */
static void clear(q3_gguf *g)
{
    for (size_t i = 0; i < g->part_count; i++) {
        q3_unmap(&g->parts[i].mapping);
        free(g->parts[i].path);
    }
    free(g->parts);
    free(g->values.data);
    free(g->tensors.data);
    *g = (q3_gguf){0};
}

void q3_gguf_close(q3_gguf *gguf)
{
    if (gguf == NULL) return;
    clear(gguf);
    free(gguf);
}

/* ==== Parts =================================================================================== */

/* The part's number and how many there are: 0 and 1 for a whole file. path: for messages. */
static q3_status read_split(const q3_buffer *values, const char *path, uint64_t *number,
                            uint64_t *count, q3_error *error)
{
    const q3_gguf_value *no = find_in(values, "split.no"), *all = find_in(values, "split.count");
    *number = 0;
    *count = 1;
    if (all == NULL) return Q3_OK;
    if (!q3_gguf_integer(all, count) || *count > 99999)
        return q3_fail(error, Q3_ERROR_INPUT, "%.300s: split.count: expected an integer up to "
                       "99999", path);
    if (*count <= 1) return Q3_OK;
    if (!q3_gguf_integer(no, number) || *number >= *count)
        return q3_fail(error, Q3_ERROR_INPUT, "%.300s: split.no: expected an integer below %" PRIu64
                       ", which is split.count", path, *count);
    return Q3_OK;
}

/* What the name of a part ends with, as llama.cpp's gguf-split writes it. */
static void part_ending(char ending[64], uint64_t number, uint64_t count)
{
    snprintf(ending, 64, "-%05lu-of-%05lu.gguf", (unsigned long)number + 1, (unsigned long)count);
}

/* All tensors are there. */
static q3_status check_total(const q3_gguf *g, q3_error *error)
{
    uint64_t total = 0;
    const q3_gguf_value *v = find_in(&g->values, "split.tensors.count");
    if (v == NULL || (q3_gguf_integer(v, &total) && total == g->tensors.count)) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%.300s: split.tensors.count: found %" PRIu64
                   ", expected %zu, which is how many tensors the parts have", g->parts[0].path,
                   total, g->tensors.count);
}

/* Part `number` of `count`, whose values must say so too. */
static q3_status open_numbered(q3_gguf *g, const char *stem, uint64_t number, uint64_t count,
                               bool only_metadata, q3_error *error)
{
    char ending[64];
    uint64_t own = 0, all = 0;
    q3_buffer others = {0}, *values = number == 0 ? &g->values : &others;
    part_ending(ending, number, count);
    char *path = q3_join(stem, ending, "");
    if (path == NULL) return q3_no_memory(error, stem);
    q3_status status = open_part(g, path, values, only_metadata, error);
    if (status == Q3_OK) status = read_split(values, path, &own, &all, error);
    if (status == Q3_OK && (own != number || all != count))
        status = q3_fail(error, Q3_ERROR_INPUT, "%.300s: split.no and split.count: found %" PRIu64
                         " and %" PRIu64 ", expected %" PRIu64 " and %" PRIu64, path, own, all,
                         number, count);
    free(others.data);
    free(path);
    return status;
}

/* The file that is named, and where it is a part, all parts in its place. */
static q3_status open_all(q3_gguf *g, const char *path, bool only_metadata, q3_error *error)
{
    uint64_t number = 0, count = 1;
    char ending[64];
    size_t length = strlen(path);
    q3_status status = open_part(g, path, &g->values, only_metadata, error);
    if (status == Q3_OK) status = read_split(&g->values, path, &number, &count, error);
    if (status != Q3_OK || count <= 1) return status;
    part_ending(ending, number, count);
    if (length < strlen(ending) || strcmp(path + length - strlen(ending), ending) != 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%.300s: it is part %" PRIu64 " of %" PRIu64
                       ", expected a name that ends with %s", path, number + 1, count, ending);
    char *stem = q3_join(path, "", "");
    if (stem == NULL) return q3_no_memory(error, path);
    stem[length - strlen(ending)] = 0;
    clear(g);
    for (uint64_t i = 0; status == Q3_OK && i < (only_metadata ? 1 : count); i++)
        status = open_numbered(g, stem, i, count, only_metadata, error);
    free(stem);
    return status != Q3_OK || only_metadata ? status : check_total(g, error);
}

/* For qsort and bsearch: by name. */
static int compare_tensors(const void *a, const void *b)
{
    const tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The tensors of all parts, by name, each once. */
static q3_status sort_tensors(q3_gguf *g, q3_error *error)
{
    tensor *t = g->tensors.data;
    if (g->tensors.count > 0) qsort(t, g->tensors.count, sizeof *t, compare_tensors);
    for (size_t i = 0; i < g->tensors.count; i++) {
        t[i].shown.entry.name = t[i].name;
        t[i].shown.entry.data = t[i].shown.data;
        t[i].shown.path = g->parts[t[i].part].path;
        t[i].shown.mapping = &g->parts[t[i].part].mapping;
        if (t[i].format != NULL) {
            t[i].quantized = q3_block_weight(t[i].format, t[i].shown.data);
            t[i].shown.entry.data = &t[i].quantized;
        }
        if (i > 0 && compare_tensors(&t[i - 1], &t[i]) == 0)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%.200s: %s: found twice, expected each tensor once", t[i].shown.path,
                           t[i].name);
    }
    return Q3_OK;
}

q3_status q3_gguf_open(q3_gguf **gguf, const char *path, bool only_metadata, q3_error *error)
{
    q3_gguf *g = calloc(1, sizeof *g);
    if (g == NULL) return q3_no_memory(error, path);
    q3_status status = open_all(g, path, only_metadata, error);
    if (status == Q3_OK) status = sort_tensors(g, error);
    if (status == Q3_OK)
        *gguf = g;
    else
        q3_gguf_close(g);
    return status;
}

size_t q3_gguf_count(const q3_gguf *gguf)
{
    return gguf->tensors.count;
}

const q3_gguf_tensor *q3_gguf_at(const q3_gguf *gguf, size_t index)
{
    const tensor *t = gguf->tensors.data;
    return index < gguf->tensors.count ? &t[index].shown : NULL;
}

const q3_gguf_tensor *q3_gguf_tensor_of(const q3_gguf *gguf, const char *name)
{
    tensor key;
    if (gguf->tensors.count == 0 || strlen(name) >= sizeof key.name) return NULL;
    memcpy(key.name, name, strlen(name) + 1);
    const tensor *t = bsearch(&key, gguf->tensors.data, gguf->tensors.count, sizeof key,
                              compare_tensors);
    return t != NULL ? &t->shown : NULL;
}

bool q3_is_gguf(const char *path, const q3_mapping *file)
{
    size_t length = strlen(path);
    return (length > 5 && strcmp(path + length - 5, ".gguf") == 0) ||
           (file->size >= 4 && memcmp(file->data, "GGUF", 4) == 0);
}

bool q3_names_gguf(const char *path)
{
    q3_mapping file;
    if (q3_is_folder(path) || q3_map(&file, path, NULL) != Q3_OK) return false;
    bool is = q3_is_gguf(path, &file);
    q3_unmap(&file);
    return is;
}

const char *q3_gguf_path(const q3_gguf *gguf)
{
    return gguf->parts[0].path;
}

const q3_gguf_value *q3_gguf_find(const q3_gguf *gguf, const char *key)
{
    return find_in(&gguf->values, key);
}
