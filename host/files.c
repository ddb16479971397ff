/* files.c - all that depends on the operating system: files mapped for reading, and files written
 * beside their target that take its place when complete. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "host/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#include <windows.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define Q3_HAS_MMAP 1
#endif

/* ==== Messages ================================================================================ */

q3_status q3_fail_file(q3_error *error, const char *path, const char *expected)
{
    const char *reason = errno != 0 ? strerror(errno) : "an error";
    return q3_fail(error, Q3_ERROR_FILE, "%.300s: file: found %s, expected %s", path, reason,
                   expected);
}

static q3_status no_memory(const char *path, const char *verb, q3_error *error)
{
    return q3_fail(error, Q3_ERROR_MEMORY, "%.300s: not enough memory to %s it", path, verb);
}

/* ==== Files in ================================================================================ */

/* Reads what is left of a file that has no size, such as a pipe, or that cannot be mapped. */
static q3_status read_all(q3_mapping *mapping, FILE *file, const char *path, q3_error *error)
{
    uint8_t *data = NULL;
    size_t size = 0, capacity = 0, got = 1;
    while (got > 0) {
        if (size == capacity) {
            size_t larger = capacity + capacity / 2 + 65536;
            uint8_t *grown = larger > capacity ? realloc(data, larger) : NULL;
            if (grown == NULL) {
                free(data);
                return no_memory(path, "read", error);
            }
            data = grown;
            capacity = larger;
        }
        got = fread(data + size, 1, capacity - size, file);
        size += got;
    }
    if (ferror(file)) {
        q3_fail_file(error, path, "a file that can be read");
        free(data);
        return Q3_ERROR_FILE;
    }
    *mapping = (q3_mapping){.data = data, .size = size, .base = data};
    return Q3_OK;
}

#if defined(_WIN32)

static bool map_file(q3_mapping *mapping, const char *path, q3_status *status, q3_error *error)
{
    HANDLE file = CreateFileA(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING,
                              FILE_ATTRIBUTE_NORMAL, NULL), section = NULL;
    LARGE_INTEGER size = {0};
    void *base = NULL;
    *status = Q3_OK;
    if (file == INVALID_HANDLE_VALUE) return false;
    if (GetFileType(file) == FILE_TYPE_DISK && GetFileSizeEx(file, &size) && size.QuadPart > 0 &&
        (uint64_t)size.QuadPart <= SIZE_MAX) {
        section = CreateFileMappingA(file, NULL, PAGE_READONLY, 0, 0, NULL);
        base = section != NULL ? MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0) : NULL;
        if (base == NULL)
            *status = q3_fail(error, Q3_ERROR_MEMORY, "%.300s: it cannot be mapped into memory",
                              path);
    }
    if (section != NULL)
        CloseHandle(section); /* the view keeps it alive */
    CloseHandle(file);
    if (base != NULL) *mapping = (q3_mapping){base, (size_t)size.QuadPart, base, true};
    return base != NULL || *status != Q3_OK;
}

static void unmap_file(q3_mapping *mapping)
{
    UnmapViewOfFile(mapping->base);
}

bool q3_is_folder(const char *path)
{
    DWORD attributes = GetFileAttributesA(path);
    return attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0;
}

bool q3_same_file(const char *a, const char *b)
{
    char full[2][MAX_PATH];
    bool both = GetFullPathNameA(a, MAX_PATH, full[0], NULL) != 0 &&
        GetFullPathNameA(b, MAX_PATH, full[1], NULL) != 0;
    return strcmp(a, b) == 0 || (both && lstrcmpiA(full[0], full[1]) == 0);
}

#elif defined(Q3_HAS_MMAP)

/* True if the file was mapped, or must be given up with *status; false: read it instead. */
static bool map_file(q3_mapping *mapping, const char *path, q3_status *status, q3_error *error)
{
    struct stat about;
    int file = open(path, O_RDONLY);
    void *base = MAP_FAILED;
    *status = Q3_OK;
    if (file < 0)
        return false; /* reading it will fail for the same reason, and say so */
    bool known = fstat(file, &about) == 0, regular = known && S_ISREG(about.st_mode) &&
        about.st_size > 0;
    if (known && S_ISCHR(about.st_mode)) { /* which may have no end */
        close(file);
        *status = q3_fail(error, Q3_ERROR_FILE, "%.300s: file: found a device, expected a file",
                          path);
        return true;
    }
    if (regular && (uint64_t)about.st_size <= SIZE_MAX)
        base = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file); /* the mapping stays */
    if (base != MAP_FAILED)
        *mapping = (q3_mapping){base, (size_t)about.st_size, base, true};
    else if (regular)
        *status = q3_fail(error, Q3_ERROR_MEMORY, "%.300s: it cannot be mapped into memory", path);
    return regular;
}

static void unmap_file(q3_mapping *mapping)
{
    munmap(mapping->base, mapping->size);
}

bool q3_is_folder(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

bool q3_same_file(const char *a, const char *b)
{
    struct stat x, y;
    bool both = stat(a, &x) == 0 && stat(b, &y) == 0;
    return strcmp(a, b) == 0 || (both && x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

#else

static bool map_file(q3_mapping *mapping, const char *path, q3_status *status, q3_error *error)
{
    (void)mapping, (void)path, (void)error;
    *status = Q3_OK;
    return false;
}

static void unmap_file(q3_mapping *mapping)
{
    (void)mapping;
}

/* Without the system's help: a folder is what has an entry called ".". */
bool q3_is_folder(const char *path)
{
    char *self = q3_join(path, "/", ".");
    bool is = self != NULL && q3_exists(self);
    free(self);
    return is;
}

bool q3_same_file(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

#endif

q3_status q3_map(q3_mapping *mapping, const char *path, q3_error *error)
{
    q3_status status = Q3_OK;
    if (map_file(mapping, path, &status, error)) return status;
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return q3_fail_file(error, path, "a file that can be read");
    status = read_all(mapping, file, path, error);
    fclose(file);
    return status;
}

void q3_unmap(q3_mapping *mapping)
{
    if (mapping->mapped)
        unmap_file(mapping);
    else
        free(mapping->base);
    *mapping = (q3_mapping){0};
}

bool q3_exists(const char *path)
{
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return errno != ENOENT && errno != ENOTDIR;
    fclose(file);
    return true;
}

/* ==== Files out =============================================================================== */

struct q3_output {
    FILE *file;       /* NULL: for standard output, which cannot seek, so kept in memory */
    char *path, *temporary;
    uint64_t at, end; /* where the next byte goes, and how long the file is */
    uint8_t *memory;
    size_t capacity;
};

#if defined(_WIN32)

static bool can_replace(const char *path)
{
    DWORD attributes = GetFileAttributesA(path);
    return attributes == INVALID_FILE_ATTRIBUTES || (attributes & FILE_ATTRIBUTE_DIRECTORY) == 0;
}

static FILE *create_new(const char *path)
{
    int file = _open(path, _O_CREAT | _O_EXCL | _O_RDWR | _O_BINARY, _S_IREAD | _S_IWRITE);
    return file >= 0 ? _fdopen(file, "wb") : NULL;
}

static bool seek_to(FILE *file, uint64_t offset)
{
    return _fseeki64(file, (int64_t)offset, SEEK_SET) == 0;
}

static bool replace_file(const char *from, const char *to)
{
    return MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING) != 0;
}

#else

/* A folder, a device or a pipe is not replaced by a file. */
static bool can_replace(const char *path)
{
#if defined(Q3_HAS_MMAP)
    struct stat about;
    return stat(path, &about) != 0 || S_ISREG(about.st_mode);
#else
    (void)path;
    return true;
#endif
}

static FILE *create_new(const char *path)
{
    return fopen(path, "wbx");
}

static bool seek_to(FILE *file, uint64_t offset)
{
#if defined(Q3_HAS_MMAP)
    off_t position = (off_t)offset;
    return position >= 0 && (uint64_t)position == offset && fseeko(file, position, SEEK_SET) == 0;
#else
    long position = (long)offset;
    return position >= 0 && (uint64_t)position == offset && fseek(file, position, SEEK_SET) == 0;
#endif
}

static bool replace_file(const char *from, const char *to)
{
    return rename(from, to) == 0;
}

#endif

static void output_free(q3_output *output)
{
    free(output->path);
    free(output->temporary);
    free(output->memory);
    free(output);
}

q3_status q3_output_open(q3_output **output, const char *path, q3_error *error)
{
    q3_output *new = calloc(1, sizeof *new);
    char number[16];
    bool standard = strcmp(path, "-") == 0;
    if (!standard && !can_replace(path)) {
        free(new);
        return q3_fail(error, Q3_ERROR_FILE, "%.300s: file: found a folder or a device, expected a "
                       "file or nothing", path);
    }
    if (new != NULL) new->path = q3_join(path, "", "");
    if (new == NULL || new->path == NULL) {
        free(new);
        return no_memory(path, "write", error);
    }
    for (unsigned i = 0; !standard && i < 1000 && new->file == NULL; i++) {
        snprintf(number, sizeof number, "%u", i);
        free(new->temporary);
        new->temporary = q3_join(path, ".tmp", number);
        if (new->temporary == NULL) break;
        errno = 0;
        new->file = create_new(new->temporary);
        if (new->file == NULL && errno != EEXIST) break;
    }
    if (!standard && new->file == NULL) {
        q3_status status = new->temporary != NULL
                         ? q3_fail_file(error, path, "a file that can be made beside it")
                         : no_memory(path, "write", error);
        output_free(new);
        return status;
    }
    *output = new;
    return Q3_OK;
}

static bool write_at_end(q3_output *output, const uint8_t *bytes, size_t count)
{
    if (fwrite(bytes, 1, count, output->file) != count) return false;
    output->at += count;
    if (output->at > output->end) output->end = output->at;
    return true;
}

/* The same for standard output; what grows is zero until something is put there. */
static q3_status put_in_memory(q3_output *output, uint64_t offset, const uint8_t *bytes,
                               size_t count, q3_error *error)
{
    if (offset > SIZE_MAX / 2 || count > SIZE_MAX / 2 - (size_t)offset)
        return no_memory(output->path, "write", error);
    size_t end = (size_t)offset + count;
    if (end > output->capacity) {
        size_t larger = end > 2 * output->capacity ? end : 2 * output->capacity;
        uint8_t *grown = realloc(output->memory, larger);
        if (grown == NULL) return no_memory(output->path, "write", error);
        memset(grown + output->capacity, 0, larger - output->capacity);
        output->memory = grown;
        output->capacity = larger;
    }
    if (count > 0) memcpy(output->memory + offset, bytes, count);
    if (end > output->end) output->end = end;
    return Q3_OK;
}

q3_status q3_output_put(q3_output *output, uint64_t offset, const uint8_t *bytes, size_t count,
                        q3_error *error)
{
    static const uint8_t zeros[4096];
    uint64_t start = offset < output->end ? offset : output->end;
    bool ok = true;
    if (output->file == NULL) return put_in_memory(output, offset, bytes, count, error);
    errno = 0;
    if (start != output->at) {
        ok = seek_to(output->file, start);
        output->at = start;
    }
    while (ok && output->at < offset) {
        uint64_t gap = offset - output->at;
        ok = write_at_end(output, zeros, gap < sizeof zeros ? (size_t)gap : sizeof zeros);
    }
    ok = ok && write_at_end(output, bytes, count);
    return ok ? Q3_OK : q3_fail_file(error, output->path, "room to write it");
}

q3_status q3_output_commit(q3_output *output, q3_error *error)
{
    errno = 0;
    if (output->file == NULL) {
        size_t size = (size_t)output->end;
        bool written = fwrite(output->memory, 1, size, stdout) == size && fflush(stdout) == 0;
        output_free(output);
        return written ? Q3_OK : q3_fail_file(error, "standard output", "room to write it");
    }
    bool ok = fclose(output->file) == 0;
    if (!ok || !replace_file(output->temporary, output->path)) {
        q3_fail_file(error, output->path, ok ? "a file that can be replaced" : "room to write it");
        remove(output->temporary);
        output_free(output);
        return Q3_ERROR_FILE;
    }
    output_free(output);
    return Q3_OK;
}

void q3_output_abandon(q3_output *output)
{
    if (output == NULL) return;
    if (output->file != NULL) {
        fclose(output->file);
        remove(output->temporary);
    }
    output_free(output);
}
