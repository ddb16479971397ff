/* SPDX-License-Identifier: MIT */
/* files.h - what the sources that read and write files share; not part of the public interface.
 *
 * files.c        files mapped into memory, files written beside their target: everything that
 *                depends on the operating system
 * config.c       config.json
 * safetensors.c  the safetensors format, in and out (its interface is in qwen3moe.h)
 * gguf.c         llama.cpp's GGUF files, in (gguf.h)
 * listing.c      which tensors a model has, and in which of its files (listing.h)
 * checkpoint.c   the model folder: which tensors there must be, and where they lie */
#ifndef Q3_FILES_H
#define Q3_FILES_H

#include "host/json.h"
#include "host/text.h"
#include "qwen3moe.h"

/* ==== Files in ================================================================================ */

typedef struct q3_mapping {
    const uint8_t *data; /* never NULL while open */
    size_t size;
    void *base;  /* what must be given back */
    bool mapped; /* to the system, else to free() */
} q3_mapping;

/* Maps a whole file for reading (or reads it, where it cannot be mapped). */
Q3_PRIVATE_API q3_status q3_map(q3_mapping *mapping, const char *path, q3_error *error);
/* {0} is allowed. */
Q3_PRIVATE_API void q3_unmap(q3_mapping *mapping);

/* Hints to the system: a part of a mapping will be read soon; it will not be read again, or not
 * soon. No value depends on them, and they do nothing where a mapping is memory. */
Q3_PRIVATE_API void q3_will_need(const q3_mapping *mapping, const void *data, size_t size);
Q3_PRIVATE_API void q3_done_with(const q3_mapping *mapping, const void *data, size_t size);

/* Reads a whole file (path "-": standard input) into a new block, with a zero behind it that is not
 * counted. */
Q3_PRIVATE_API q3_status q3_read_whole(uint8_t **bytes, size_t *length, const char *path,
                                       q3_error *error);

/* Whether something stands at path, readable or not. */
Q3_PRIVATE_API bool q3_exists(const char *path);
Q3_PRIVATE_API bool q3_is_folder(const char *path);
/* Whether both paths are one existing file; where the system does not tell, whether they are
 * spelled alike. */
Q3_PRIVATE_API bool q3_same_file(const char *a, const char *b);

/* ==== Files out =============================================================================== */

typedef struct q3_output q3_output;

/* Creates a new file beside path, called path.tmp0 or the next number that is free. Path "-":
 * standard output, which gets everything when it is committed. */
Q3_PRIVATE_API q3_status q3_output_open(q3_output **output, const char *path, q3_error *error);
/* The same beside a file that may be there already, path.part, of a run that did not end; `fresh`:
 * nothing of it counts. Not for "-". It stays when the output is abandoned. An error if another
 * program writes it, where the system tells. */
Q3_PRIVATE_API q3_status q3_output_go_on(q3_output **output, const char *path, bool fresh,
                                         q3_error *error);
/* What was put is on the disk when this returns, as far as the system can say. */
Q3_PRIVATE_API q3_status q3_output_sync(q3_output *output, q3_error *error);
/* Bytes at an offset; what lies between the end and the offset becomes zeros. */
Q3_PRIVATE_API q3_status q3_output_put(q3_output *output, uint64_t offset, const uint8_t *bytes,
                                       size_t count, q3_error *error);
/* Closes the file and puts it in the place of path; on an error nothing is left of it. The output
 * is gone in any case. */
Q3_PRIVATE_API q3_status q3_output_commit(q3_output *output, q3_error *error);
/* Whether path, however it is spelled, is where the output will stand. */
Q3_PRIVATE_API bool q3_output_is(const q3_output *output, const char *path);
/* Removes the file. NULL is allowed. */
Q3_PRIVATE_API void q3_output_abandon(q3_output *output);

/* ==== Safetensors ============================================================================= */

/* As q3_tensors_open, but a tensor of another dtype is no error: its entry has dtype Q3_AUTO and no
 * values. F8_E4M3, which no tap is stored in, counts as another one. */
Q3_PRIVATE_API q3_status q3_tensors_open_any(q3_tensors **tensors, const char *path,
                                             q3_error *error);

/* q3_writer_open with q3_output_go_on; the header is written again. */
Q3_PRIVATE_API q3_status q3_writer_go_on(q3_writer **writer, const char *path,
                                         const q3_entry *entries, size_t count,
                                         const char *const *metadata, bool fresh, q3_error *error);
Q3_PRIVATE_API q3_status q3_writer_sync(q3_writer *writer, q3_error *error);

/* What an entry's data lie in. */
Q3_PRIVATE_API const q3_mapping *q3_tensors_mapping(const q3_tensors *tensors);

/* ==== The model =============================================================================== */

/* Hints, for a run layer by layer: it comes to this layer, and is done with the one before; it will
 * use these experts of a layer. After q3_model_load, of layers that it loaded. */
Q3_PRIVATE_API void q3_model_turn(const q3_model *model, size_t layer);
Q3_PRIVATE_API void q3_model_chosen(const q3_model *model, size_t layer, const int32_t *ids,
                                    size_t count);

/* ==== config.json ============================================================================= */

/* quantization_config of an fp8 checkpoint (MODEL.md section 2): which weights are quantised. */
typedef struct q3_fp8 {
    bool used;         /* there is one */
    bool listed;       /* modules_to_not_convert is there; else lm_head alone is kept */
    size_t block_rows, block_columns; /* of a weight, that share a scale */
    const char **kept; /* [kept_count], owned */
    size_t kept_count;
    char *texts;       /* owned: theirs */
} q3_fp8;

typedef struct q3_config_file {
    q3_config config;        /* config.mlp_only_layers is the next field */
    size_t *mlp_only_layers; /* owned: ascending, each once, those in range */
    char *json;              /* owned: q3_model_config_json */
    q3_dtype dtype;          /* dtype or torch_dtype; Q3_AUTO if neither is there */
    q3_fp8 fp8;
} q3_config_file;

/* The config as q3_model_config_json has it, in new memory; NULL: no memory. */
Q3_PRIVATE_API char *q3_config_json(const q3_config *config);
/* Reads a parsed config.json; *file is written on success alone. */
Q3_PRIVATE_API q3_status q3_config_read(q3_config_file *file, const q3_json *j, q3_error *error);
Q3_PRIVATE_API void q3_config_free(q3_config_file *file);

/* Whether the model's config.json has quantization_config. */
Q3_PRIVATE_API bool q3_model_is_fp8(const q3_model *model);
/* Whether transformers (5.x, or 4.x) leaves the module of this name, a Linear's without ".weight",
 * as it is. */
bool q3_fp8_keeps(const q3_fp8 *fp8, const char *module, bool version_5);

/* Whether RoPE can be computed with these parameters, which may be each in its range and too much
 * together: dynamic RoPE raises theta where a run is longer than max_position_embeddings (most);
 * the ends of YaRN's ramp must be integers of 64 bits; llama3's smooth step must not carry a
 * frequency above 1 (MODEL.md section 5). False for what no config may say, too. */
Q3_PRIVATE_API bool q3_rope_fits(const q3_rope *rope, size_t head_dim, size_t most, size_t length);

#endif
