/* SPDX-License-Identifier: MIT */
/* folders.h - the folders that runs write in, and what stands in them. */
#ifndef Q3_TESTS_FAULTS_FOLDERS_H
#define Q3_TESTS_FAULTS_FOLDERS_H

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_ROOM 1200

/* The files of a folder, with their bytes. */
typedef struct folder_file {
    char name[80];
    char *bytes; /* with a zero behind them */
    size_t size;
} folder_file;

typedef struct snapshot {
    folder_file files[16];
    size_t count;
} snapshot;

static void give_up(const char *what)
{
    perror(what);
    _exit(97);
}

static char *read_bytes(const char *path, size_t *size)
{
    struct stat about;
    FILE *stream = fopen(path, "rb");
    if (stream == NULL || fstat(fileno(stream), &about) != 0) give_up(path);
    char *bytes = malloc((size_t)about.st_size + 1);
    if (bytes == NULL) give_up(path);
    *size = fread(bytes, 1, (size_t)about.st_size, stream);
    bytes[*size] = 0;
    fclose(stream);
    return bytes;
}

static void write_bytes(const char *path, const char *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");
    if (stream == NULL || fwrite(bytes, 1, size, stream) != size || fclose(stream) != 0)
        give_up(path);
}

static void copy_bytes(const char *from, const char *to)
{
    size_t size;
    char *bytes = read_bytes(from, &size);
    write_bytes(to, bytes, size);
    free(bytes);
}

/* Calls something for each file of a folder; a folder in it counts as a file without bytes. */
static void each_file(const char *folder, void (*call)(const char *path, const char *name,
                                                       void *user), void *user)
{
    char path[PATH_ROOM];
    DIR *all = opendir(folder);
    if (all == NULL) give_up(folder);
    for (struct dirent *entry; (entry = readdir(all)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        call(path, entry->d_name, user);
    }
    closedir(all);
}

static void remove_one(const char *path, const char *name, void *user)
{
    (void)name;
    (void)user;
    if (remove(path) != 0) give_up(path);
}

static void empty_folder(const char *folder)
{
    each_file(folder, remove_one, NULL);
}

static void copy_one(const char *path, const char *name, void *user)
{
    char to[PATH_ROOM];
    snprintf(to, sizeof to, "%s/%s", (const char *)user, name);
    copy_bytes(path, to);
}

static void copy_folder(const char *from, char *to)
{
    each_file(from, copy_one, to);
}

static void keep_one(const char *path, const char *name, void *user)
{
    snapshot *all = user;
    if (all->count == sizeof all->files / sizeof *all->files) give_up("too many files");
    folder_file *kept = &all->files[all->count++];
    snprintf(kept->name, sizeof kept->name, "%.79s", name);
    kept->bytes = read_bytes(path, &kept->size);
}

static void snapshot_take(snapshot *all, const char *folder)
{
    all->count = 0;
    each_file(folder, keep_one, all);
}

static void snapshot_free(snapshot *all)
{
    for (size_t i = 0; i < all->count; i++) free(all->files[i].bytes);
    all->count = 0;
}

static const folder_file *snapshot_find(const snapshot *all, const char *name)
{
    for (size_t i = 0; i < all->count; i++)
        if (strcmp(all->files[i].name, name) == 0) return &all->files[i];
    return NULL;
}

static bool same_file(const folder_file *a, const folder_file *b)
{
    return a != NULL && b != NULL && a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

#endif
