/* SPDX-License-Identifier: MIT */
/* listing.h - which tensors a model has, and in which of its files. Private to host/. */
#ifndef Q3_LISTING_H
#define Q3_LISTING_H

#include "host/gguf.h"

typedef struct q3_shard {
    char *path;          /* owned */
    q3_tensors *tensors; /* NULL until one of its tensors is needed */
    size_t listed;       /* how many tensors the index gives it */
} q3_shard;

typedef struct q3_item {
    const char *name;
    const char *file; /* its shard, until it has a number */
    size_t shard;
    const q3_gguf_tensor *tensor; /* of a GGUF file, which has no shards; else NULL */
    bool expected; /* the model has a tensor of this name */
} q3_item;

/* Where a tensor lies; all of it belongs to the file. */
typedef struct q3_found {
    const q3_entry *entry;
    const char *path;
    const q3_mapping *mapping;
    const void *data; /* its first byte there, and how many they are */
    size_t size;
} q3_found;

/* What the weights' one file or the index lists. {0} is empty. */
typedef struct q3_listing {
    const char *folder; /* not owned */
    q3_shard *shards;   /* [shard_count], owned, as all that follows */
    size_t shard_count;
    char *path;         /* of that file, for messages */
    q3_item *items;     /* [count], by name */
    size_t count, expected;
    char *texts;        /* the index's strings */
} q3_listing;

/* Maps and parses a JSON file. path must live as long as the document. */
q3_status q3_open_json(q3_mapping *text, q3_json *document, const char *path, q3_error *error);

/* Which of the two ways the weights are kept, and their list. Both or neither is an error. folder
 * ends with a slash and must outlive the list, which is to be freed after an error too. */
q3_status q3_list_tensors(q3_listing *list, const char *folder, q3_error *error);
/* The tensors of a GGUF file, under its own names. It must outlive the list, which is to be freed
 * after an error too. */
q3_status q3_list_gguf(q3_listing *list, const q3_gguf *gguf, const char *path, q3_error *error);
/* The listed tensor of this name, or NULL. */
q3_item *q3_find_item(const q3_listing *list, const char *name);
/* Finds a listed tensor in its file. Its shard is opened, and compared with the index: the same
 * names, each in one file. */
q3_status q3_find_entry(q3_found *found, q3_listing *list, const q3_item *item, q3_error *error);
/* Frees the names: the shards, whose tensors are in use, stay open. */
void q3_listing_forget(q3_listing *list);
void q3_listing_free(q3_listing *list);

#endif
