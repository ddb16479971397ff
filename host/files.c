/* SPDX-License-Identifier: MIT */
/* files.c - all that depends on the operating system: files mapped for reading, and files written
 * beside their target that take its place when complete. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#define _DEFAULT_SOURCE /* madvise, where there is one */

#include "host/files.h"

#include <errno.h>
#include <inttypes.h>
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

/* "cannot read FILE: no such file", after a call that set errno (0: the system did not say). */
static q3_status fail_file(q3_error *error, const char *verb, const char *path)
{
    bool create = strcmp(verb, "create") == 0;
    const char *reason = strerror(errno);
    if (errno == 0) reason = "the system gives no reason";
    if (errno == ENOENT) reason = create ? "no such folder" : "no such file";
    if (errno == EACCES) reason = "permission denied";
#ifdef ENOTDIR
    if (errno == ENOTDIR) reason = "a part of the path is a file, not a folder";
#endif
#ifdef EISDIR
    if (errno == EISDIR) reason = "it is a folder";
#endif
#ifdef ENOSPC
    if (errno == ENOSPC) reason = "no space left";
#endif
    return q3_fail(error, Q3_ERROR_FILE, "cannot %s %.300s: %s", verb, path, reason);
}

#if defined(_WIN32) || defined(Q3_HAS_MMAP)
/* A file that is there, but not in memory. */
static q3_status fail_map(q3_error *error, const char *path, uint64_t size)
{
    return q3_fail(error, Q3_ERROR_MEMORY, "%.300s: cannot map its %" PRIu64 " bytes into memory%s",
                   path, size, SIZE_MAX > UINT32_MAX ? ""
                   : ", as this is a 32-bit program: take a 64-bit one");
}
#endif

/* ==== Files in ================================================================================ */

/* Reads what is left of a file, which may have no size, such as a pipe, and puts a zero behind
 * it. */
static q3_status read_all(q3_buffer *bytes, FILE *file, const char *path, q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t got = 1; got > 0 && status == Q3_OK; bytes->count += got) {
        size_t room = bytes->capacity - bytes->count;
        if (room < 2) room = q3_reserve(bytes, 65536, 1) ? bytes->capacity - bytes->count : 0;
        if (room == 0) status = q3_no_memory(error, path);
        got = room > 0 ? fread((uint8_t *)bytes->data + bytes->count, 1, room - 1, file) : 0;
    }
    if (status == Q3_OK && ferror(file)) status = fail_file(error, "read", path);
    if (status == Q3_OK) {
        ((uint8_t *)bytes->data)[bytes->count] = 0;
        return Q3_OK;
    }
    free(bytes->data);
    *bytes = (q3_buffer){0};
    return status;
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
            *status = fail_map(error, path, (uint64_t)size.QuadPart);
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
        *status = q3_fail(error, Q3_ERROR_FILE, "cannot read %.300s: it is a device", path);
        return true;
    }
    if (regular && (uint64_t)about.st_size <= SIZE_MAX)
        base = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file); /* the mapping stays */
    if (base != MAP_FAILED)
        *mapping = (q3_mapping){base, (size_t)about.st_size, base, true};
    else if (regular)
        *status = fail_map(error, path, (uint64_t)about.st_size);
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
    if (file == NULL) return fail_file(error, "read", path);
    q3_buffer bytes = {0};
    status = read_all(&bytes, file, path, error);
    fclose(file);
    if (status == Q3_OK)
        *mapping = (q3_mapping){.data = bytes.data, .size = bytes.count, .base = bytes.data};
    return status;
}

q3_status q3_read_whole(uint8_t **bytes, size_t *length, const char *path, q3_error *error)
{
    bool standard = strcmp(path, "-") == 0;
    q3_buffer all = {0};
    errno = 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    if (file == NULL) return fail_file(error, "read", path);
#if defined(_WIN32)
    if (standard) _setmode(_fileno(stdin), _O_BINARY);
#endif
    q3_status status = read_all(&all, file, standard ? "standard input" : path, error);
    if (!standard) fclose(file);
    if (status != Q3_OK) return status;
    *bytes = all.data;
    *length = all.count;
    return Q3_OK;
}

#if defined(Q3_HAS_MMAP)

/* The pages that hold data[0..size): of the mapping alone, which begins with one. */
static bool pages_of(const q3_mapping *mapping, const void *data, size_t size, uint8_t **begin,
                     size_t *length)
{
    long page = sysconf(_SC_PAGESIZE);
    size_t at = (size_t)((const uint8_t *)data - mapping->data);
    Q3_CHECK(at <= mapping->size && size <= mapping->size - at);
    if (!mapping->mapped || page <= 0 || size == 0) return false;
    size_t over = at % (size_t)page;
    *begin = (uint8_t *)mapping->base + (at - over);
    *length = size + over;
    return true;
}

void q3_will_need(const q3_mapping *mapping, const void *data, size_t size)
{
    uint8_t *begin;
    size_t length;
    if (pages_of(mapping, data, size, &begin, &length))
        posix_madvise(begin, length, POSIX_MADV_WILLNEED);
}

/* The pages stay in the system's cache, for the next run, but no more as this program's. Not
 * posix_madvise where there is the other: glibc's does nothing. */
void q3_done_with(const q3_mapping *mapping, const void *data, size_t size)
{
    uint8_t *begin;
    size_t length;
    if (!pages_of(mapping, data, size, &begin, &length)) return;
#if defined(MADV_DONTNEED)
    madvise(begin, length, MADV_DONTNEED);
#else
    posix_madvise(begin, length, POSIX_MADV_DONTNEED);
#endif
}

#else

void q3_will_need(const q3_mapping *mapping, const void *data, size_t size)
{
    (void)mapping, (void)data, (void)size;
}

void q3_done_with(const q3_mapping *mapping, const void *data, size_t size)
{
    (void)mapping, (void)data, (void)size;
}

#endif

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
    bool kept;        /* when it is abandoned: to go on with */
    q3_buffer memory; /* of bytes */
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

/* Made if there is none; nobody else writes it. */
static FILE *open_again(const char *path, bool fresh)
{
    FILE *file = fopen(path, "r+b");
    if (file == NULL && errno == ENOENT) return create_new(path);
    if (file == NULL || !fresh || _chsize_s(_fileno(file), 0) == 0) return file;
    fclose(file);
    return NULL;
}

static bool sync_file(FILE *file)
{
    return fflush(file) == 0 && _commit(_fileno(file)) == 0;
}

/* Goes to its end, too. */
static bool file_size(FILE *file, uint64_t *size)
{
    int64_t end = _fseeki64(file, 0, SEEK_END) == 0 ? _ftelli64(file) : -1;
    *size = end >= 0 ? (uint64_t)end : 0;
    return end >= 0;
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

#if defined(Q3_HAS_MMAP)

/* Made if there is none; nobody else writes it: the lock goes with this program. */
static FILE *open_again(const char *path, bool fresh)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int number = open(path, O_RDWR | O_CREAT, 0666);
    bool locked = number >= 0 && fcntl(number, F_SETLK, &lock) == 0;
    if (number >= 0 && !locked && (errno == EACCES || errno == EAGAIN)) errno = ETXTBSY;
    bool ready = locked && (!fresh || ftruncate(number, 0) == 0);
    FILE *file = ready ? fdopen(number, "r+b") : NULL;
    int why = errno;
    if (number >= 0 && file == NULL) close(number);
    errno = why;
    return file;
}

/* Goes to its end, too. */
static bool file_size(FILE *file, uint64_t *size)
{
    off_t end = fseeko(file, 0, SEEK_END) == 0 ? ftello(file) : -1;
    *size = end >= 0 ? (uint64_t)end : 0;
    return end >= 0;
}

static bool sync_file(FILE *file)
{
    return fflush(file) == 0 && (fsync(fileno(file)) == 0 || errno == EINVAL);
}

#else

static FILE *open_again(const char *path, bool fresh)
{
    FILE *file = fopen(path, fresh ? "w+b" : "r+b");
    return file != NULL || fresh ? file : create_new(path);
}

static bool file_size(FILE *file, uint64_t *size)
{
    long end = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    *size = end >= 0 ? (uint64_t)end : 0;
    return end >= 0;
}

static bool sync_file(FILE *file)
{
    return fflush(file) == 0;
}

#endif

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

/* Memory alone; the file is closed by then. */
static void output_free(q3_output *output)
{
    free(output->path);
    free(output->temporary);
    free(output->memory.data);
    free(output);
}

/* An output for this path, without a file yet. */
static q3_status new_output(q3_output **output, const char *path, bool standard, q3_error *error)
{
    if (!standard && !can_replace(path))
        return q3_fail(error, Q3_ERROR_FILE, "cannot write %.300s: it is a folder or a device",
                       path);
    q3_output *new = calloc(1, sizeof *new);
    if (new != NULL) new->path = q3_join(path, "", "");
    if (new == NULL || new->path == NULL) {
        free(new);
        return q3_no_memory(error, path);
    }
    *output = new;
    return Q3_OK;
}

q3_status q3_output_open(q3_output **output, const char *path, q3_error *error)
{
    q3_output *new = NULL;
    char number[16];
    bool standard = strcmp(path, "-") == 0;
    q3_status found = new_output(&new, path, standard, error);
    if (found != Q3_OK) return found;
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
        q3_status status = new->temporary != NULL ? fail_file(error, "create", path)
                                                  : q3_no_memory(error, path);
        output_free(new);
        return status;
    }
    *output = new;
    return Q3_OK;
}

q3_status q3_output_go_on(q3_output **output, const char *path, bool fresh, q3_error *error)
{
    q3_output *new = NULL;
    q3_status status = new_output(&new, path, false, error);
    if (status != Q3_OK) return status;
    new->kept = true;
    new->temporary = q3_join(path, ".part", "");
    if (new->temporary == NULL) {
        status = q3_no_memory(error, path);
    } else {
        errno = 0;
        new->file = open_again(new->temporary, fresh);
        if (new->file == NULL)
            status = errno == ETXTBSY
                   ? q3_fail(error, Q3_ERROR_FILE, "cannot write %.300s: another run writes it",
                             new->temporary)
                   : fail_file(error, "create", new->temporary);
    }
    if (status == Q3_OK && !file_size(new->file, &new->end))
        status = fail_file(error, "read", new->temporary);
    new->at = new->end;
    if (status == Q3_OK)
        *output = new;
    else
        q3_output_abandon(new);
    return status;
}

q3_status q3_output_sync(q3_output *output, q3_error *error)
{
    errno = 0;
    if (output->file == NULL || sync_file(output->file)) return Q3_OK;
    return fail_file(error, "write", output->path);
}

/* Bytes at the place where the last ones ended; false if the system refuses. */
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
    q3_buffer *memory = &output->memory;
    bool fits = offset <= SIZE_MAX / 2 && count <= SIZE_MAX / 2 - (size_t)offset;
    size_t end = fits ? (size_t)offset + count : 0;
    size_t more = end > memory->count ? end - memory->count : 0;
    if (!fits || !q3_reserve(memory, more, 1)) return q3_no_memory(error, "standard output");
    uint8_t *data = memory->data;
    if (more > 0) memset(data + memory->count, 0, more);
    memory->count += more;
    if (count > 0) memcpy(data + offset, bytes, count);
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
    return ok ? Q3_OK : fail_file(error, "write", output->path);
}

q3_status q3_output_commit(q3_output *output, q3_error *error)
{
    errno = 0;
    if (output->file == NULL) {
        size_t size = output->memory.count;
        bool written = fwrite(output->memory.data, 1, size, stdout) == size && fflush(stdout) == 0;
        output_free(output);
        return written ? Q3_OK : fail_file(error, "write", "standard output");
    }
    bool ok = fclose(output->file) == 0;
    if (!ok || !replace_file(output->temporary, output->path)) {
        fail_file(error, ok ? "replace" : "write", output->path);
        if (!output->kept) remove(output->temporary);
        output_free(output);
        return Q3_ERROR_FILE;
    }
    output_free(output);
    return Q3_OK;
}

/* The new file is there already: under the other path's name too, if they are one. */
bool q3_output_is(const q3_output *output, const char *path)
{
    if (output->file == NULL || strcmp(path, "-") == 0) return strcmp(output->path, path) == 0;
    char *other = q3_join(path, output->temporary + strlen(output->path), "");
    bool is = q3_same_file(output->path, path) ||
              (other != NULL && q3_same_file(output->temporary, other));
    free(other);
    return is;
}

void q3_output_abandon(q3_output *output)
{
    if (output == NULL) return;
    if (output->file != NULL) {
        fclose(output->file);
        if (!output->kept) remove(output->temporary);
    }
    output_free(output);
}
