/* SPDX-License-Identifier: MIT */
/* A folder for the tests to write into, in the working directory: made by folder_make, emptied and
 * removed by folder_remove; files are written by folder_write and remembered. */
#ifndef Q3_FOLDER_H
#define Q3_FOLDER_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <direct.h>
#define folder_mkdir(path) _mkdir(path)
#define folder_rmdir(path) _rmdir(path)
#else
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>
#define folder_mkdir(path) mkdir(path, 0777)
#define folder_rmdir(path) rmdir(path)
#endif

static struct {
    char path[64];
    char names[200][64]; /* of the files in it */
    size_t count;
} folder;

/* The path of a file in the folder; valid until the eighth call after it. */
static const char *folder_path(const char *name)
{
    static char paths[8][160];
    static size_t turn;
    turn = (turn + 1) % 8;
    snprintf(paths[turn], sizeof paths[turn], "%s/%.90s", folder.path, name);
    return paths[turn];
}

/* Remembers a file that something else writes, so that it is removed in the end. */
static void folder_expect(const char *name)
{
    for (size_t i = 0; i < folder.count; i++) {
        if (strcmp(folder.names[i], name) == 0) return;
    }
    if (folder.count == sizeof folder.names / sizeof *folder.names ||
        strlen(name) >= sizeof folder.names[0]) {
        fprintf(stderr, "too many files in the test's folder, or too long a name: %s\n", name);
        abort();
    }
    snprintf(folder.names[folder.count++], sizeof folder.names[0], "%s", name);
}

static void folder_empty(void)
{
    for (size_t i = 0; i < folder.count; i++) remove(folder_path(folder.names[i]));
    folder.count = 0;
}

static void folder_make(const char *name)
{
    snprintf(folder.path, sizeof folder.path, "%s", name);
    folder_mkdir(name);
#if !defined(_WIN32)
    DIR *left = opendir(name); /* of a run that did not end */
    for (struct dirent *file; left != NULL && (file = readdir(left)) != NULL;) {
        if (file->d_name[0] != '.') remove(folder_path(file->d_name));
    }
    if (left != NULL) closedir(left);
#endif
}

static void folder_remove(void)
{
    folder_empty();
    folder_rmdir(folder.path);
}

static void folder_write(const char *name, const void *bytes, size_t count)
{
    folder_expect(name);
    remove(folder_path(name)); /* some file systems wait for the disk when a file is overwritten */
    FILE *file = fopen(folder_path(name), "wb");
    if (file == NULL || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) {
        fprintf(stderr, "cannot write %s\n", folder_path(name));
        abort();
    }
}

#endif
