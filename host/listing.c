/* SPDX-License-Identifier: MIT */
/* listing.c - which tensors a model has, and in which of its files: model.safetensors, the shards
 * of model.safetensors.index.json, or a GGUF file. */
#include "host/listing.h"

#include <stdlib.h>
#include <string.h>

/* Maps and parses a JSON file. path must live as long as the document. */
q3_status q3_open_json(q3_mapping *text, q3_json *document, const char *path, q3_error *error)
{
    q3_status status = q3_map(text, path, error);
    if (status != Q3_OK) return status;
    status = q3_json_parse(document, path, text->data, text->size, error);
    if (status != Q3_OK) q3_unmap(text);
    return status;
}

void q3_listing_forget(q3_listing *list)
{
    free(list->path);
    free(list->items);
    free(list->texts);
    list->path = list->texts = NULL;
    list->items = NULL;
    list->count = list->expected = 0;
}

void q3_listing_free(q3_listing *list)
{
    q3_listing_forget(list);
    for (size_t i = 0; i < list->shard_count; i++) {
        q3_tensors_close(list->shards[i].tensors);
        free(list->shards[i].path);
    }
    free(list->shards);
    *list = (q3_listing){0};
}

/* For qsort and bsearch: by name. */
static int compare_items(const void *a, const void *b)
{
    const q3_item *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* For qsort: by shard. */
static int compare_files(const void *a, const void *b)
{
    const q3_item *x = a, *y = b;
    return strcmp(x->file, y->file);
}

q3_item *q3_find_item(const q3_listing *list, const char *name)
{
    q3_item key = {.name = name};
    if (list->count == 0) return NULL;
    return bsearch(&key, list->items, list->count, sizeof key, compare_items);
}

/* One file: its tensors are the list. */
static q3_status list_file(q3_listing *list, q3_error *error)
{
    list->shards = calloc(1, sizeof *list->shards);
    if (list->shards == NULL) return q3_no_memory(error, list->path);
    list->shard_count = 1;
    list->shards[0].path = q3_join(list->path, "", "");
    if (list->shards[0].path == NULL) return q3_no_memory(error, list->path);
    q3_status status = q3_tensors_open(&list->shards[0].tensors, list->path, error);
    if (status != Q3_OK) return status;
    list->count = q3_tensors_count(list->shards[0].tensors);
    list->items = calloc(list->count + 1, sizeof *list->items);
    if (list->items == NULL) return q3_no_memory(error, list->path);
    for (size_t i = 0; i < list->count; i++)
        list->items[i].name = q3_tensors_at(list->shards[0].tensors, i)->name;
    if (list->count > 0) qsort(list->items, list->count, sizeof *list->items, compare_items);
    return Q3_OK;
}

/* A plain name of a file in the folder. */
static bool is_file_name(const char *name)
{
    return name[0] != 0 && strpbrk(name, "/\\:") == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

/* Gives the shards numbers, and the listing its order by name. */
static q3_status number_shards(q3_listing *list, q3_error *error)
{
    size_t shards = 0;
    if (list->count > 0) qsort(list->items, list->count, sizeof *list->items, compare_files);
    for (size_t i = 0; i < list->count; i++) {
        shards += i == 0 || strcmp(list->items[i - 1].file, list->items[i].file) != 0;
        list->items[i].shard = shards - 1;
    }
    list->shards = calloc(shards + 1, sizeof *list->shards);
    if (list->shards == NULL) return q3_no_memory(error, list->path);
    list->shard_count = shards;
    for (size_t i = 0; i < list->count; i++) {
        q3_shard *s = &list->shards[list->items[i].shard];
        s->listed++;
        if (s->path == NULL) s->path = q3_join(list->folder, list->items[i].file, "");
        if (s->path == NULL) return q3_no_memory(error, list->path);
    }
    if (list->count > 0) qsort(list->items, list->count, sizeof *list->items, compare_items);
    return Q3_OK;
}

/* The index's weight_map: names and their files. */
static q3_status read_weight_map(q3_listing *list, const q3_json *j, q3_error *error)
{
    uint32_t map = q3_json_find(j, 0, "weight_map"), key = map + 1;
    if (map == 0 || q3_json_type_of(j, map) != Q3_JSON_OBJECT)
        return q3_json_fail(j, map, "weight_map", "an object of tensors and their files", error);
    list->count = j->nodes[map].count;
    list->items = calloc(list->count + 1, sizeof *list->items);
    list->texts = malloc((size_t)j->nodes[0].end + 1);
    if (list->items == NULL || list->texts == NULL) return q3_no_memory(error, list->path);
    char *at = list->texts;
    for (size_t i = 0; i < list->count; i++, key = j->nodes[key + 1].next) {
        q3_item *it = &list->items[i];
        it->name = q3_json_keep(j, key, &at);
        if (it->name == NULL)
            return q3_json_fail(j, key, "weight_map", "a name without zero bytes", error);
        if (q3_json_type_of(j, key + 1) == Q3_JSON_STRING) it->file = q3_json_keep(j, key + 1, &at);
        if (it->file == NULL || !is_file_name(it->file))
            return q3_json_fail(j, key + 1, it->name, "the name of a file in the folder", error);
    }
    return number_shards(list, error);
}

/* Many files: the index is the list. */
static q3_status list_index(q3_listing *list, q3_error *error)
{
    q3_mapping text = {0};
    q3_json document = {0};
    q3_status status = q3_open_json(&text, &document, list->path, error);
    if (status != Q3_OK) return status;
    status = read_weight_map(list, &document, error);
    q3_json_free(&document);
    q3_unmap(&text);
    return status;
}

q3_status q3_list_tensors(q3_listing *list, const char *folder, q3_error *error)
{
    static const char single[] = "model.safetensors", index[] = "model.safetensors.index.json";
    list->folder = folder;
    char *one = q3_join(list->folder, single, ""), *many = q3_join(list->folder, index, "");
    if (one == NULL || many == NULL) {
        free(one);
        free(many);
        return q3_no_memory(error, list->folder);
    }
    bool has_one = q3_exists(one), has_many = q3_exists(many);
    list->path = has_one ? one : many;
    free(has_one ? many : one);
    if (has_one == has_many)
        return q3_fail(error, Q3_ERROR_INPUT, "%.300s: weights: found %s, expected %s or %s",
                       list->folder, has_one ? "both files" : "neither file", single, index);
    return has_one ? list_file(list, error) : list_index(list, error);
}

q3_status q3_list_gguf(q3_listing *list, const q3_gguf *gguf, const char *path, q3_error *error)
{
    list->path = q3_join(path, "", "");
    list->count = q3_gguf_count(gguf);
    list->items = calloc(list->count + 1, sizeof *list->items);
    if (list->path == NULL || list->items == NULL) return q3_no_memory(error, path);
    for (size_t i = 0; i < list->count; i++) {
        list->items[i].tensor = q3_gguf_at(gguf, i);
        list->items[i].name = list->items[i].tensor->entry.name;
    }
    return Q3_OK;
}

/* A shard holds what the index puts there, and nothing else. */
static q3_status compare_shard(const q3_listing *list, size_t number, q3_error *error)
{
    const q3_shard *s = &list->shards[number];
    for (size_t i = 0; i < q3_tensors_count(s->tensors); i++) {
        const q3_entry *entry = q3_tensors_at(s->tensors, i);
        const q3_item *it = q3_find_item(list, entry->name);
        if (it == NULL || it->shard != number)
            return q3_fail(error, Q3_ERROR_INPUT, "%.200s: %.120s: the index %s", s->path,
                           entry->name, it == NULL ? "does not list this tensor"
                                      : "puts this tensor into another file");
    }
    if (q3_tensors_count(s->tensors) == s->listed) return Q3_OK;
    for (size_t i = 0; i < list->count; i++) {
        const q3_item *it = &list->items[i];
        if (it->shard == number && q3_tensors_find(s->tensors, it->name) == NULL)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%.200s: %.120s: missing, though the index puts it here", s->path,
                           it->name);
    }
    return Q3_OK;
}

/* It stays closed unless it is as the index has it. */
static q3_status open_shard(q3_listing *list, size_t number, q3_error *error)
{
    q3_shard *s = &list->shards[number];
    q3_status status = q3_tensors_open(&s->tensors, s->path, error);
    if (status == Q3_OK) status = compare_shard(list, number, error);
    if (status != Q3_OK) {
        q3_tensors_close(s->tensors);
        s->tensors = NULL;
    }
    return status;
}

q3_status q3_find_entry(q3_found *found, q3_listing *list, const q3_item *item, q3_error *error)
{
    const q3_gguf_tensor *t = item->tensor;
    if (t != NULL) {
        *found = (q3_found){&t->entry, t->path, t->mapping, t->data, t->size};
        return Q3_OK;
    }
    q3_shard *s = &list->shards[item->shard];
    q3_status status = s->tensors == NULL ? open_shard(list, item->shard, error) : Q3_OK;
    if (status != Q3_OK) return status;
    const q3_entry *entry = q3_tensors_find(s->tensors, item->name);
    Q3_CHECK(entry != NULL);
    size_t size = q3_dtype_size(entry->dtype);
    for (size_t i = 0; i < entry->rank; i++) size *= (size_t)entry->shape[i];
    *found = (q3_found){entry, s->path, q3_tensors_mapping(s->tensors), entry->data, size};
    return Q3_OK;
}
