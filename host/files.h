/* SPDX-License-Identifier: MIT */
/* files.h - what the sources that read and write files share; not part of the public interface.
 *
 * files.c        files mapped into memory, files written beside their target
 * system.c       everything that depends on the operating system (system.h)
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

#include <stdio.h>

/* Paths are bytes, as the system has them; on Windows UTF-8. */

/* ==== Files in ================================================================================ */

typedef struct q3_mapping {
    const uint8_t *data; /* never NULL while open */
    size_t size;
    void *base;  /* what must be given back */
    bool mapped; /* to the system, else to free() */
} q3_mapping;

/* Maps a whole regular file for reading (or reads it, where there are no mappings, or its size is
 * not told). A folder, a pipe or a device is an error, and not waited for. */
Q3_PRIVATE_API q3_status q3_map(q3_mapping *mapping, const char *path, q3_error *error);
/* {0} is allowed. */
Q3_PRIVATE_API void q3_unmap(q3_mapping *mapping);

/* Hints to the system: a part of a mapping will be read soon; it will not be read again, or not
 * soon. No value depends on them, and they do nothing where a mapping is memory. */
Q3_PRIVATE_API void q3_will_need(const q3_mapping *mapping, const void *data, size_t size);
Q3_PRIVATE_API void q3_done_with(const q3_mapping *mapping, const void *data, size_t size);

/* Reads a whole file (path "-": standard input) into a new block, with a zero behind it that is not
 * counted. A pipe or a terminal will do: it is read to its end, and waited for. */
Q3_PRIVATE_API q3_status q3_read_whole(uint8_t **bytes, size_t *length, const char *path,
                                       q3_error *error);

/* Whether something stands at path, readable or not. */
Q3_PRIVATE_API bool q3_exists(const char *path);
Q3_PRIVATE_API bool q3_is_folder(const char *path);
/* Whether both paths are one existing file; where a system knows no identity, whether they are
 * spelled alike. True where the system fails to tell: who asks would write on one of them. */
Q3_PRIVATE_API bool q3_same_file(const char *a, const char *b);
/* *holds: path is a file of this folder, under whatever name; a link from elsewhere counts, where
 * the system tells. Error: the folder cannot be listed. */
Q3_PRIVATE_API q3_status q3_folder_holds(bool *holds, const char *folder, const char *path,
                                         q3_error *error);
/* Before any file is opened: a standard stream that is closed stays so. A file that took its number
 * would be read or printed to. */
Q3_PRIVATE_API void q3_keep_streams(void);
/* Whether standard input (0), output (1) or error (2) is this file; false where the system does not
 * tell. */
Q3_PRIVATE_API bool q3_stream_is(int stream, const char *path);
/* Whether nothing would be lost at path: there is nothing, an empty file, or one in whose first 512
 * bytes this mark stands. */
Q3_PRIVATE_API bool q3_is_earlier(const char *path, const char *mark);
/* Removes a file. On POSIX this is one call that a signal's handler may make. */
Q3_PRIVATE_API bool q3_remove(const char *path);
/* Where the path leads, if it is a symbolic link, to something or to nothing; else the path. New
 * memory; NULL: none. */
Q3_PRIVATE_API char *q3_resolve(const char *path);
/* Whether an output at path is standard output: "-", or a name that the system has for it. */
Q3_PRIVATE_API bool q3_is_standard(const char *path);
/* Bytes go through as they are, where a system would change the ends of lines. */
Q3_PRIVATE_API void q3_binary(FILE *file);

/* ==== Files out =============================================================================== */

typedef struct q3_output q3_output;

/* Creates a new file beside path, called path.tmp0 or the next number that is free. It will have
 * the permissions of the file that it replaces, though not its owner; where path is a symbolic
 * link, the file that it leads to is replaced (or made), and the link stays. What stands there and
 * is no file (a device, a pipe, /dev/stdout) is opened and gets everything when it is committed, as
 * does standard output (q3_is_standard). */
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
/* Whether path, however it is spelled, is where the output will stand, or stands until then. */
Q3_PRIVATE_API bool q3_output_is(const q3_output *output, const char *path);
/* Removes the file. NULL is allowed. */
Q3_PRIVATE_API void q3_output_abandon(q3_output *output);

/* ==== Who is told =============================================================================
 * What a signal interrupts does not come to its end: the file that was being written stays, and
 * nobody says which mapped file was cut. So the command keeps a list (command/system.c), in
 * variables, as a handler sees nothing else. The library keeps none: it tells whoever asked. */

/* BEGINS: it is about to be made; THERE: it was, and is to be removed if the program ends before
 * GONE, which also comes where it could not be made. */
typedef enum q3_temporary {
    Q3_TEMPORARY_BEGINS, Q3_TEMPORARY_THERE, Q3_TEMPORARY_GONE
} q3_temporary;

typedef struct q3_watch {
    void (*mapped)(const uint8_t *data, size_t size, const char *path);
    void (*unmapped)(const uint8_t *data);
    void (*temporary)(q3_temporary state, const char *path); /* not of q3_output_go_on */
} q3_watch;

/* For a program that calls it once, before any file is open. */
Q3_PRIVATE_API void q3_watch_files(const q3_watch *by);

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
    const char **kept; /* [kept_count], owned; by name */
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
