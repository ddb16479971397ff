/* SPDX-License-Identifier: MIT */
/* gguf.h - llama.cpp's GGUF files. Private.
 *
 * gguf.c       the format: values of metadata, and tensors
 * gguf_text.c  what they are called and what they mean here: the texts that config.c and
 *              tokenizer_file.c read */
#ifndef Q3_GGUF_H
#define Q3_GGUF_H

#include "host/files.h"

/* ==== Metadata ================================================================================ */

/* Types of metadata, by the numbers that files have. */
typedef enum q3_gguf_type {
    Q3_GGUF_U8, Q3_GGUF_I8, Q3_GGUF_U16, Q3_GGUF_I16, Q3_GGUF_U32, Q3_GGUF_I32, Q3_GGUF_F32,
    Q3_GGUF_BOOL, Q3_GGUF_STRING, Q3_GGUF_ARRAY, Q3_GGUF_U64, Q3_GGUF_I64, Q3_GGUF_F64,
    Q3_GGUF_TYPES
} q3_gguf_type;

/* Bytes in the file, not ended by 0. */
typedef struct q3_span {
    const uint8_t *bytes;
    size_t length;
} q3_span;

/* The value of a key. What `data` holds has been checked against the file's size. */
typedef struct q3_gguf_value {
    q3_span key;
    q3_gguf_type type; /* an array's is that of its elements, which are no arrays */
    bool array;
    size_t count;        /* of elements; 1 if it is no array */
    const uint8_t *data; /* the first one */
} q3_gguf_value;

/* Bytes of a value; 0: it has no fixed size. */
size_t q3_gguf_size(q3_gguf_type type);
/* A little-endian number of so many bytes. */
uint64_t q3_gguf_load(const uint8_t *bytes, size_t size);
/* Whether a value (NULL allowed) is an integer from 0 on, and no array: then *number is it. */
bool q3_gguf_integer(const q3_gguf_value *value, uint64_t *number);
/* The string at data; the next one starts where it ends. */
q3_span q3_gguf_string(const uint8_t *data);
bool q3_span_is(q3_span span, const char *text);

/* ==== The file ================================================================================ */

typedef struct q3_gguf q3_gguf;

/* A tensor, and the file it stands in. */
typedef struct q3_gguf_tensor {
    q3_entry entry;   /* its name is GGUF's, its shape as in Hugging Face: the last axis is fastest;
                       * data of Q3_QUANTIZED is a q3_quantized */
    const char *path; /* of its part */
    const q3_mapping *mapping;
    const uint8_t *data; /* its first byte there, and how many they are */
    size_t size;
} q3_gguf_tensor;

/* Whether a file, which is mapped, starts as a GGUF file does or is called so. */
bool q3_is_gguf(const char *path, const q3_mapping *file);
/* The same of a path; false for what cannot be mapped, and for folders. */
Q3_PRIVATE_API bool q3_names_gguf(const char *path);
/* Maps a GGUF file, and where it is one of several parts, all of them (only_metadata: the first,
 * and it has no tensors then). */
Q3_PRIVATE_API q3_status q3_gguf_open(q3_gguf **gguf, const char *path, bool only_metadata,
                                      q3_error *error);
/* NULL is allowed. */
Q3_PRIVATE_API void q3_gguf_close(q3_gguf *gguf);
/* Of the first part, for messages. */
const char *q3_gguf_path(const q3_gguf *gguf);
/* NULL: absent. */
const q3_gguf_value *q3_gguf_find(const q3_gguf *gguf, const char *key);
Q3_PRIVATE_API size_t q3_gguf_count(const q3_gguf *gguf);
/* In the order of their names; NULL: there is none. Valid until closed. */
Q3_PRIVATE_API const q3_gguf_tensor *q3_gguf_at(const q3_gguf *gguf, size_t index);
const q3_gguf_tensor *q3_gguf_tensor_of(const q3_gguf *gguf, const char *name);

/* ==== What it means =========================================================================== */

/* What the file calls a tensor of Hugging Face's name; false: it has no name for it. The experts of
 * a layer are one tensor for each matrix: mlp.experts.gate_proj, .up_proj [E,F,M] and .down_proj
 * [E,M,F]. */
bool q3_gguf_name(char name[64], const char *hugging_face);
/* The metadata as a config.json, in new memory, for q3_config_read, which judges the values. */
Q3_PRIVATE_API q3_status q3_gguf_config(char **json, const q3_gguf *gguf, q3_error *error);
/* The tokenizer as a tokenizer.json, in new memory. */
Q3_PRIVATE_API q3_status q3_gguf_tokenizer(char **json, const q3_gguf *gguf, q3_error *error);
/* tokenizer.chat_template, in new memory. */
Q3_PRIVATE_API q3_status q3_gguf_chat_template(uint8_t **text, size_t *length, const q3_gguf *gguf,
                                               q3_error *error);

#endif
