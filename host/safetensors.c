/* SPDX-License-Identifier: MIT */
/* safetensors.c - the safetensors format, in and out.
 *
 *   8 bytes       length N of the header, little-endian
 *   N bytes       JSON: {"__metadata__":{text:text}, NAME:{"dtype":"F32","shape":[2,3],
 *                 "data_offsets":[first byte, byte after the last]}, ...}, spaces at its end
 *   the rest      the tensors, row-major, little-endian; offsets count from here
 *
 * Read strictly: the tensors fill the rest of the file, without holes and without overlaps. */
#include "host/files.h"
#include "host/quants.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DTYPES_TEXT "dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"
#define MOST_AXES (sizeof ((q3_entry *)0)->shape / sizeof *((q3_entry *)0)->shape)

/* False if it does not fit 64 bits, even where another axis is 0. */
static bool count_elements(const q3_entry *entry, uint64_t *elements)
{
    *elements = 1;
    for (size_t i = 0; i < entry->rank; i++) {
        if (entry->shape[i] != 0 && *elements > UINT64_MAX / entry->shape[i]) return false;
        *elements *= entry->shape[i];
    }
    return true;
}

/* ==== Reading ================================================================================= */

struct q3_tensors {
    const char *path; /* for messages; lives as long as the call that opens */
    q3_mapping mapping;
    q3_json header;        /* freed when the file is open */
    const uint8_t *data;   /* the bytes after the header */
    uint64_t size;         /* how many they are */
    q3_entry *entries;     /* [count], in the header's order */
    const q3_entry **sorted; /* [count], by name */
    size_t count;
    const char **metadata; /* [2 * metadata_count]: key, value, ... */
    size_t metadata_count;
    char *texts; /* names and metadata, each ended by 0 */
    char *text_end; /* where the next one goes */
    bool any_dtype; /* tensors of other dtypes, and of F8_E4M3, have no values, and are no error */
};

void q3_tensors_close(q3_tensors *tensors)
{
    if (tensors == NULL) return;
    q3_json_free(&tensors->header);
    q3_unmap(&tensors->mapping);
    free(tensors->entries);
    free(tensors->sorted);
    free(tensors->metadata);
    free(tensors->texts);
    free(tensors);
}

/* __metadata__: strings by string keys. */
static q3_status read_metadata(q3_tensors *t, uint32_t object, q3_error *error)
{
    const q3_json *j = &t->header;
    uint32_t key = object + 1;
    if (q3_json_type_of(j, object) != Q3_JSON_OBJECT)
        return q3_json_fail(j, object, "__metadata__", "an object of strings", error);
    for (uint32_t i = 0; i < j->nodes[object].count; i++, key = j->nodes[key + 1].next) {
        if (q3_json_type_of(j, key + 1) != Q3_JSON_STRING)
            return q3_json_fail(j, key + 1, "__metadata__", "strings", error);
        const char *name = q3_json_keep(j, key, &t->text_end);
        const char *value = q3_json_keep(j, key + 1, &t->text_end);
        if (name == NULL || value == NULL)
            return q3_json_fail(j, name == NULL ? key : key + 1, "__metadata__",
                                "strings without zero bytes", error);
        t->metadata[2 * t->metadata_count] = name;
        t->metadata[2 * t->metadata_count + 1] = value;
        t->metadata_count++;
    }
    return Q3_OK;
}

/* Up to eight sizes. */
static q3_status read_shape(const q3_json *j, uint32_t array, q3_entry *entry, q3_error *error)
{
    uint32_t value = array + 1;
    if (array == 0 || q3_json_type_of(j, array) != Q3_JSON_ARRAY)
        return q3_json_fail(j, array, entry->name, "shape, a list of integers", error);
    if (j->nodes[array].count > MOST_AXES)
        return q3_fail(error, Q3_ERROR_INPUT, "%.200s: %.150s: found %lu axes, expected at most 8",
                       j->name, entry->name, (unsigned long)j->nodes[array].count);
    entry->rank = j->nodes[array].count;
    for (size_t i = 0; i < entry->rank; i++, value = j->nodes[value].next) {
        if (!q3_json_uint(j, value, &entry->shape[i]))
            return q3_json_fail(j, value, entry->name, "shape, a list of integers", error);
    }
    return Q3_OK;
}

/* Where the data lie; their length must be that of the shape. */
static q3_status read_offsets(const q3_tensors *t, uint32_t array, q3_entry *entry,
                              uint64_t begin_end[2], q3_error *error)
{
    const q3_json *j = &t->header;
    uint64_t elements = 0;
    if (array == 0 || q3_json_type_of(j, array) != Q3_JSON_ARRAY || j->nodes[array].count != 2 ||
        !q3_json_uint(j, array + 1, &begin_end[0]) || !q3_json_uint(j, array + 2, &begin_end[1]) ||
        begin_end[0] > begin_end[1])
        return q3_json_fail(j, array, entry->name, "data_offsets, two ascending integers", error);
    if (begin_end[1] > t->size)
        return q3_fail(error, Q3_ERROR_INPUT, "%.200s: %.150s: found data up to byte %" PRIu64
                       ", expected at most %" PRIu64 ", where the file ends", j->name, entry->name,
                       begin_end[1], t->size);
    entry->data = t->data + begin_end[0];
    if (entry->dtype == Q3_AUTO)
        return Q3_OK; /* of another dtype, whose size is not known here */
    if (!count_elements(entry, &elements) || elements > UINT64_MAX / q3_dtype_size(entry->dtype))
        return q3_fail(error, Q3_ERROR_INPUT, "%.200s: %.150s: found a shape of 2^64 bytes or "
                       "more, expected one that fits", j->name, entry->name);
    if (begin_end[1] - begin_end[0] != elements * q3_dtype_size(entry->dtype))
        return q3_fail(error, Q3_ERROR_INPUT, "%.200s: %.150s: found %" PRIu64
                       " bytes of data, expected %" PRIu64 " for its shape", j->name, entry->name,
                       begin_end[1] - begin_end[0], elements * q3_dtype_size(entry->dtype));
    return Q3_OK;
}

/* One member of the header: its key and, after it, the value. */
static q3_status read_entry(q3_tensors *t, uint32_t key, q3_entry *entry, uint64_t begin_end[2],
                            q3_error *error)
{
    const q3_json *j = &t->header;
    uint32_t object = key + 1, dtype = q3_json_find(j, object, "dtype");
    entry->name = q3_json_keep(j, key, &t->text_end);
    if (entry->name == NULL)
        return q3_json_fail(j, key, "header", "a name without zero bytes", error);
    if (q3_json_type_of(j, object) != Q3_JSON_OBJECT)
        return q3_json_fail(j, object, entry->name, "an object", error);
    entry->dtype = Q3_AUTO;
    for (q3_dtype d = (q3_dtype)0; dtype != 0 && d < Q3_AUTO; d++)
        if (q3_json_equal(j, dtype, q3_dtype_code(d)) && (d != Q3_F8 || !t->any_dtype))
            entry->dtype = d;
    bool other = t->any_dtype && dtype != 0 && q3_json_type_of(j, dtype) == Q3_JSON_STRING;
    if (entry->dtype == Q3_AUTO && !other)
        return q3_json_fail(j, dtype, entry->name, DTYPES_TEXT, error);
    q3_status status = read_shape(j, q3_json_find(j, object, "shape"), entry, error);
    if (status != Q3_OK) return status;
    return read_offsets(t, q3_json_find(j, object, "data_offsets"), entry, begin_end, error);
}

typedef struct range {
    uint64_t begin, end;
    size_t index;
} range;

/* For qsort: by place in the file. */
static int compare_ranges(const void *a, const void *b)
{
    const range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* For qsort: by name. */
static int compare_entries(const void *a, const void *b)
{
    const q3_entry *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* The tensors, one after the other, fill the data: no holes, no overlaps, nothing left over. */
static q3_status check_ranges(const q3_tensors *t, range *ranges, q3_error *error)
{
    uint64_t at = 0;
    if (t->count > 0) qsort(ranges, t->count, sizeof *ranges, compare_ranges);
    for (size_t i = 0; i < t->count; i++) {
        if (ranges[i].begin != at)
            return q3_fail(error, Q3_ERROR_INPUT, "%.200s: %.150s: found its data at byte %" PRIu64
                           ", expected %" PRIu64 ", where the tensor before it ends", t->path,
                           t->entries[ranges[i].index].name, ranges[i].begin, at);
        at = ranges[i].end;
    }
    if (at != t->size)
        return q3_fail(error, Q3_ERROR_INPUT, "%.300s: file: found %" PRIu64
                       " bytes of data, expected %" PRIu64 ", where the last tensor ends", t->path,
                       t->size, at);
    return Q3_OK;
}

/* All members of the header, then the rule about holes. */
static q3_status read_members(q3_tensors *t, range *ranges, q3_error *error)
{
    const q3_json *j = &t->header;
    uint32_t key = 1;
    for (uint32_t i = 0; i < j->nodes[0].count; i++, key = j->nodes[key + 1].next) {
        q3_status status;
        if (q3_json_equal(j, key, "__metadata__")) {
            status = read_metadata(t, key + 1, error);
        } else {
            uint64_t begin_end[2] = {0, 0};
            status = read_entry(t, key, &t->entries[t->count], begin_end, error);
            ranges[t->count] = (range){begin_end[0], begin_end[1], t->count};
            t->count++;
        }
        if (status != Q3_OK) return status;
    }
    return check_ranges(t, ranges, error);
}

/* Memory for everything in the header, from upper bounds: members, and members of __metadata__. */
static q3_status read_header(q3_tensors *t, q3_error *error)
{
    const q3_json *j = &t->header;
    size_t members = j->nodes[0].count, pairs = 0;
    uint32_t metadata = q3_json_find(j, 0, "__metadata__");
    if (metadata != 0 && q3_json_type_of(j, metadata) == Q3_JSON_OBJECT)
        pairs = j->nodes[metadata].count;
    range *ranges = calloc(members + 1, sizeof *ranges);
    t->entries = calloc(members + 1, sizeof *t->entries);
    t->sorted = calloc(members + 1, sizeof *t->sorted);
    t->metadata = calloc(2 * pairs + 1, sizeof *t->metadata);
    t->texts = t->text_end = malloc((size_t)j->nodes[0].end + 1); /* strings only get shorter */
    q3_status status = Q3_ERROR_MEMORY;
    if (ranges == NULL || t->entries == NULL || t->sorted == NULL || t->metadata == NULL ||
        t->texts == NULL)
        q3_no_memory(error, t->path);
    else
        status = read_members(t, ranges, error);
    free(ranges);
    if (status != Q3_OK) return status;
    for (size_t i = 0; i < t->count; i++) t->sorted[i] = &t->entries[i];
    if (t->count > 0) qsort(t->sorted, t->count, sizeof *t->sorted, compare_entries);
    return Q3_OK;
}

/* The length of the header, the header, the data. */
static q3_status open_mapped(q3_tensors *t, q3_error *error)
{
    const uint8_t *bytes = t->mapping.data;
    uint64_t length = 0;
    if (t->mapping.size < 8)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%.300s: file: found %" PRIu64 " bytes, expected a safetensors file",
                       t->path, (uint64_t)t->mapping.size);
    for (size_t i = 0; i < 8; i++) length |= (uint64_t)bytes[i] << (8 * i);
    t->size = t->mapping.size - 8;
    if (length > t->size)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%.300s: header length: found %" PRIu64 ", expected at most %" PRIu64,
                       t->path, length, t->size);
    t->size -= length;
    t->data = bytes + 8 + length;
    q3_status status = q3_json_parse(&t->header, t->path, bytes + 8, (size_t)length, error);
    if (status != Q3_OK) return status;
    if (q3_json_type_of(&t->header, 0) != Q3_JSON_OBJECT || t->header.nodes[0].start != 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%.300s: the header does not start with {", t->path);
    return read_header(t, error);
}

/* Opens, reads, and gives back everything on an error. */
static q3_status open_file(q3_tensors **tensors, const char *path, bool any_dtype, q3_error *error)
{
    q3_tensors *t = calloc(1, sizeof *t);
    if (t == NULL) return q3_no_memory(error, path);
    t->path = path;
    t->any_dtype = any_dtype;
    q3_status status = q3_map(&t->mapping, path, error);
    if (status == Q3_OK) status = open_mapped(t, error);
    q3_json_free(&t->header);
    t->path = NULL;
    if (status == Q3_OK)
        *tensors = t;
    else
        q3_tensors_close(t);
    return status;
}

q3_status q3_tensors_open(q3_tensors **tensors, const char *path, q3_error *error)
{
    return open_file(tensors, path, false, error);
}

q3_status q3_tensors_open_any(q3_tensors **tensors, const char *path, q3_error *error)
{
    return open_file(tensors, path, true, error);
}

size_t q3_tensors_count(const q3_tensors *tensors)
{
    return tensors->count;
}

const q3_entry *q3_tensors_at(const q3_tensors *tensors, size_t index)
{
    return index < tensors->count ? &tensors->entries[index] : NULL;
}

const q3_entry *q3_tensors_find(const q3_tensors *tensors, const char *name)
{
    size_t low = 0, high = tensors->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(tensors->sorted[middle]->name, name);
        if (order == 0) return tensors->sorted[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const q3_mapping *q3_tensors_mapping(const q3_tensors *tensors)
{
    return &tensors->mapping;
}

const char *q3_tensors_metadata(const q3_tensors *tensors, const char *key)
{
    for (size_t i = 0; i < tensors->metadata_count; i++) {
        if (strcmp(tensors->metadata[2 * i], key) == 0) return tensors->metadata[2 * i + 1];
    }
    return NULL;
}

/* Element `index` of little-endian elements of so many bytes. */
static uint64_t load_bits(const void *data, uint64_t index, size_t size)
{
    const uint8_t *bytes = (const uint8_t *)data + index * size;
    uint64_t bits = 0;
    for (size_t i = 0; i < size; i++) bits |= (uint64_t)bytes[i] << (8 * i);
    return bits;
}

/* Preconditions of the two readers below. */
static void check_piece(const q3_entry *entry, uint64_t first, size_t count)
{
    uint64_t elements = 0;
    Q3_CHECK(entry->dtype < Q3_AUTO);
    Q3_CHECK(count_elements(entry, &elements) && first <= elements && count <= elements - first);
}

void q3_entry_floats(float *values, const q3_entry *entry, uint64_t first, size_t count)
{
    check_piece(entry, first, count);
    Q3_CHECK(entry->dtype != Q3_I32 && entry->dtype != Q3_I64);
    if (entry->dtype == Q3_F8) {
        static const uint8_t one[] = {0, 0, 0x80, 0x3F};
        q3_quantized codes = q3_fp8_weight(entry->data, SIZE_MAX, (q3_tensor){one, Q3_F32}, 1,
                                           SIZE_MAX);
        q3_widen(values, (q3_tensor){&codes, Q3_QUANTIZED}, (size_t)first, count, Q3_F32);
        return;
    }
    if (entry->dtype != Q3_F64) {
        q3_tensor tensor = {entry->data, entry->dtype};
        q3_widen(values, tensor, (size_t)first, count, Q3_F32);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = load_bits(entry->data, first + i, 8);
        double value;
        memcpy(&value, &bits, sizeof value);
        values[i] = q3_round(value, Q3_F32);
    }
}

void q3_entry_integers(int64_t *values, const q3_entry *entry, uint64_t first, size_t count)
{
    check_piece(entry, first, count);
    Q3_CHECK(entry->dtype == Q3_I32 || entry->dtype == Q3_I64);
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = load_bits(entry->data, first + i, q3_dtype_size(entry->dtype));
        if (entry->dtype == Q3_I32 && bits > INT32_MAX) bits |= UINT64_C(0xFFFFFFFF00000000);
        values[i] = bits <= INT64_MAX ? (int64_t)bits : -(int64_t)(UINT64_MAX - bits) - 1;
    }
}

/* ==== Writing ================================================================================= */

typedef struct placed {
    q3_dtype dtype;
    uint64_t elements, offset; /* of its first byte, from the start of the file */
} placed;

struct q3_writer {
    q3_output *output;
    placed *tensors;
    size_t count;
    uint64_t end;
};

/* The places of the data, counted from its start. The header names the tensors in the order given.
 * The format allows no holes, so that in this order a tensor after one of odd size could not start
 * at a multiple of its element size; the data therefore has the tensors of 8-byte elements first,
 * then those of 4, then those of 2, each group in the order given. Both hold: no holes, and every
 * tensor is aligned. */
static bool place(q3_writer *w, const q3_entry *entries)
{
    for (size_t size = 8; size >= 2; size /= 2) {
        for (size_t i = 0; i < w->count; i++) {
            placed *p = &w->tensors[i];
            Q3_CHECK(entries[i].dtype < Q3_F8 && entries[i].rank <= MOST_AXES);
            if (q3_dtype_size(entries[i].dtype) != size) continue;
            if (!count_elements(&entries[i], &p->elements) ||
                p->elements > (INT64_MAX - w->end) / size)
                return false;
            p->dtype = entries[i].dtype;
            p->offset = w->end;
            w->end += p->elements * size;
        }
    }
    return true;
}

/* The header, blanks at its end included, so that the data start at a multiple of 8. */
static void put_header(q3_text *text, const q3_writer *w, const q3_entry *entries,
                       const char *const *metadata)
{
    const char *comma = "";
    q3_text_add(text, "{");
    if (metadata != NULL && metadata[0] != NULL) {
        q3_text_add(text, "\"__metadata__\":{");
        for (; metadata[0] != NULL; metadata += 2, comma = ",") {
            q3_text_add(text, comma);
            q3_text_string(text, metadata[0], strlen(metadata[0]));
            q3_text_add(text, ":");
            q3_text_string(text, metadata[1], strlen(metadata[1]));
        }
        q3_text_add(text, "}");
    }
    for (size_t i = 0; i < w->count; i++, comma = ",") {
        const placed *p = &w->tensors[i];
        q3_text_add(text, comma);
        q3_text_string(text, entries[i].name, strlen(entries[i].name));
        q3_text_add(text, ":{\"dtype\":\"");
        q3_text_add(text, q3_dtype_code(p->dtype));
        q3_text_add(text, "\",\"shape\":[");
        for (size_t k = 0; k < entries[i].rank; k++) {
            q3_text_add(text, k > 0 ? "," : "");
            q3_text_uint(text, entries[i].shape[k]);
        }
        q3_text_add(text, "],\"data_offsets\":[");
        q3_text_uint(text, p->offset);
        q3_text_add(text, ",");
        q3_text_uint(text, p->offset + p->elements * q3_dtype_size(p->dtype));
        q3_text_add(text, "]}");
    }
    q3_text_add(text, "}");
    while (text->size % 8 != 0) q3_text_add(text, " ");
}

/* Its length and its text; the places of the tensors become places in the file. */
static q3_status write_header(q3_writer *w, const q3_text *header, q3_error *error)
{
    uint8_t length[8];
    for (size_t i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)header->size >> (8 * i));
    q3_status status = q3_output_put(w->output, 0, length, 8, error);
    if (status == Q3_OK)
        status = q3_output_put(w->output, 8, (const uint8_t *)header->data, header->size, error);
    for (size_t i = 0; i < w->count; i++) w->tensors[i].offset += 8 + header->size;
    w->end += 8 + header->size;
    return status;
}

void q3_writer_abandon(q3_writer *writer)
{
    if (writer == NULL) return;
    q3_output_abandon(writer->output);
    free(writer->tensors);
    free(writer);
}

typedef q3_status opener(q3_output **output, const char *path, q3_error *error);

static q3_status open_fresh(q3_output **output, const char *path, q3_error *error)
{
    return q3_output_go_on(output, path, true, error);
}

static q3_status open_again(q3_output **output, const char *path, q3_error *error)
{
    return q3_output_go_on(output, path, false, error);
}

/* A writer whose file this opens. */
static q3_status start(q3_writer **writer, const char *path, const q3_entry *entries, size_t count,
                       const char *const *metadata, opener *open, q3_error *error)
{
    q3_writer *w = calloc(1, sizeof *w);
    q3_text header = {0};
    q3_status status = Q3_OK;
    if (w != NULL) w->tensors = calloc(count + 1, sizeof *w->tensors);
    if (w == NULL || w->tensors == NULL) {
        free(w);
        return q3_no_memory(error, path);
    }
    w->count = count;
    if (!place(w, entries))
        status = q3_fail(error, Q3_ERROR_INPUT, "%.300s: file: found tensors of more than 2^63 "
                         "bytes, expected fewer", path);
    if (status == Q3_OK) {
        put_header(&header, w, entries, metadata);
        if (header.failed)
            status = q3_no_memory(error, path);
    }
    if (status == Q3_OK) status = open(&w->output, path, error);
    if (status == Q3_OK) status = write_header(w, &header, error);
    free(header.data);
    if (status == Q3_OK)
        *writer = w;
    else
        q3_writer_abandon(w);
    return status;
}

q3_status q3_writer_open(q3_writer **writer, const char *path, const q3_entry *entries,
                         size_t count, const char *const *metadata, q3_error *error)
{
    return start(writer, path, entries, count, metadata, q3_output_open, error);
}

q3_status q3_writer_go_on(q3_writer **writer, const char *path, const q3_entry *entries,
                          size_t count, const char *const *metadata, bool fresh, q3_error *error)
{
    return start(writer, path, entries, count, metadata, fresh ? open_fresh : open_again, error);
}

q3_status q3_writer_sync(q3_writer *writer, q3_error *error)
{
    return q3_output_sync(writer->output, error);
}

/* The binary16 bits of a float that is one; 0xFFFFFFFF if it is none. */
static uint32_t half_bits(uint32_t bits)
{
    uint32_t sign = bits >> 16 & 0x8000, fraction = bits & 0x7FFFFF, exponent = bits >> 23 & 0xFF;
    if (exponent == 0xFF)
        return (fraction & 0x1FFF) != 0 ? 0xFFFFFFFF : sign | 0x7C00 | fraction >> 13;
    if (exponent >= 113)
        return exponent > 142 || (fraction & 0x1FFF) != 0
             ? 0xFFFFFFFF : sign | (exponent - 112) << 10 | fraction >> 13;
    if (exponent == 0 && fraction == 0) return sign;
    if (exponent < 103) /* below 2^-24 */
        return 0xFFFFFFFF;
    uint32_t shift = 126 - exponent;
    fraction |= 0x800000;
    return (fraction & ((UINT32_C(1) << shift) - 1)) != 0 ? 0xFFFFFFFF : sign | fraction >> shift;
}

/* The bits of a float in a dtype that can hold it. */
static uint64_t float_bits(float value, q3_dtype dtype)
{
    uint32_t bits, half;
    uint64_t wide;
    double exact = (double)value;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&wide, &exact, sizeof wide);
    if (dtype == Q3_F64) return wide;
    if (dtype == Q3_F32) return bits;
    if (dtype == Q3_BF16) {
        Q3_CHECK((bits & 0xFFFF) == 0);
        return bits >> 16;
    }
    half = half_bits(bits);
    Q3_CHECK(half != 0xFFFFFFFF);
    return half;
}

/* Writes the bits of elements first, first + 1, ... in pieces of a buffer. Exactly one of floats
 * and integers is given. */
static q3_status write_piece(q3_writer *w, size_t index, uint64_t first, const float *floats,
                             const int64_t *integers, size_t count, q3_error *error)
{
    uint8_t buffer[8192];
    Q3_CHECK(index < w->count);
    const placed *p = &w->tensors[index];
    size_t size = q3_dtype_size(p->dtype), most = sizeof buffer / size;
    Q3_CHECK(first <= p->elements && count <= p->elements - first);
    Q3_CHECK((integers != NULL) == (p->dtype == Q3_I32 || p->dtype == Q3_I64) || count == 0);
    for (size_t done = 0; done < count;) {
        size_t n = count - done < most ? count - done : most;
        for (size_t i = 0; i < n; i++) {
            int64_t integer = integers != NULL ? integers[done + i] : 0;
            Q3_CHECK(p->dtype != Q3_I32 || (integer >= INT32_MIN && integer <= INT32_MAX));
            uint64_t bits = integers != NULL ? (uint64_t)integer
                                             : float_bits(floats[done + i], p->dtype);
            for (size_t b = 0; b < size; b++) buffer[i * size + b] = (uint8_t)(bits >> (8 * b));
        }
        q3_status status = q3_output_put(w->output, p->offset + (first + done) * size, buffer,
                                         n * size, error);
        if (status != Q3_OK) return status;
        done += n;
    }
    return Q3_OK;
}

q3_status q3_writer_floats(q3_writer *writer, size_t index, uint64_t first, const float *values,
                           size_t count, q3_error *error)
{
    return write_piece(writer, index, first, values, NULL, count, error);
}

q3_status q3_writer_integers(q3_writer *writer, size_t index, uint64_t first, const int64_t *values,
                             size_t count, q3_error *error)
{
    return write_piece(writer, index, first, NULL, values, count, error);
}

q3_status q3_writer_commit(q3_writer *writer, q3_error *error)
{
    static const uint8_t none[1];
    q3_status status = q3_output_put(writer->output, writer->end, none, 0, error);
    if (status == Q3_OK) {
        status = q3_output_commit(writer->output, error);
        writer->output = NULL;
    }
    q3_writer_abandon(writer);
    return status;
}
