/* SPDX-License-Identifier: MIT */
/* system.h - what files.c asks of the operating system. Private; what else system.c has stands in
 * files.h. Functions that fail leave their reason in errno, and q3_fail_file says it. */
#ifndef Q3_SYSTEM_H
#define Q3_SYSTEM_H

#include "host/files.h"

#include <stdio.h>

/* "cannot read FILE: no such file", after a call that set errno (0: the system did not say). */
q3_status q3_fail_file(q3_error *error, const char *verb, const char *path);

/* Opens what is there for reading: a regular file, or, if any will do, a pipe or a terminal. */
q3_status q3_open_file(FILE **file, const char *path, bool any, q3_error *error);
/* Maps a file whole, and *mapping stays as it is where it must be read instead. */
q3_status q3_map_file(q3_mapping *mapping, FILE *file, const char *path, q3_error *error);
void q3_unmap_file(q3_mapping *mapping);

/* *stream: of a device or a pipe at path, which is written and not replaced by a file; NULL: a file
 * stands there, or nothing. */
q3_status q3_open_stream(FILE **stream, const char *path, q3_error *error);
/* To write: a file that nobody else made. NULL: there is one (EEXIST), or it cannot be. */
FILE *q3_create_new(const char *path);
/* To go on with: made if there is none, emptied if `fresh`. Nobody else writes it, where the system
 * can see to it: else NULL and ETXTBSY. */
FILE *q3_open_again(const char *path, bool fresh);
/* Who may read and write the file is as with the one at target, if there is one; `writable`: by
 * this program in any case. Owners and lists of rights are not kept. */
void q3_take_mode(FILE *file, const char *target, bool writable);
/* Goes to the file's end, too. */
bool q3_file_size(FILE *file, uint64_t *size);
bool q3_seek_to(FILE *file, uint64_t offset);
bool q3_sync_file(FILE *file);
bool q3_replace_file(const char *from, const char *to);

#endif
