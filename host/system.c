/* SPDX-License-Identifier: MIT */
/* system.c - all that depends on the operating system, and needs more than C: Windows, then systems
 * of POSIX, then others, which must do with C. */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#define _DEFAULT_SOURCE /* madvise, where there is one */

#include "host/system.h"

#include "host/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <wchar.h>
#include <windows.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define Q3_HAS_MMAP 1
#endif

/* ==== Messages ================================================================================ */

q3_status q3_fail_file(q3_error *error, const char *verb, const char *path)
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
#if defined(_WIN32)
    if (errno == ETXTBSY) reason = "another program has it open";
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

/* `what` stands at path; verb: "read" or "write". */
static q3_status fail_kind(q3_error *error, const char *verb, const char *path, const char *what)
{
    return q3_fail(error, Q3_ERROR_FILE, "cannot %s %.300s: it is a %s", verb, path, what);
}
#endif

/* ==== Windows ================================================================================= */

#if defined(_WIN32)

/* What stands in `errno` for GetLastError(). */
static void take_error(void)
{
    static const struct { DWORD windows; int number; } numbers[] = {
        {ERROR_FILE_NOT_FOUND, ENOENT}, {ERROR_PATH_NOT_FOUND, ENOENT}, {ERROR_BAD_NETPATH, ENOENT},
        {ERROR_INVALID_NAME, ENOENT}, {ERROR_ACCESS_DENIED, EACCES}, {ERROR_WRITE_PROTECT, EACCES},
        {ERROR_SHARING_VIOLATION, ETXTBSY}, {ERROR_LOCK_VIOLATION, ETXTBSY},
        {ERROR_USER_MAPPED_FILE, ETXTBSY}, {ERROR_FILE_EXISTS, EEXIST},
        {ERROR_ALREADY_EXISTS, EEXIST}, {ERROR_DISK_FULL, ENOSPC}, {ERROR_HANDLE_DISK_FULL, ENOSPC},
        {ERROR_NOT_ENOUGH_MEMORY, ENOMEM}, {ERROR_FILENAME_EXCED_RANGE, ENAMETOOLONG},
        {ERROR_TOO_MANY_OPEN_FILES, EMFILE}, {ERROR_NOT_SAME_DEVICE, EXDEV},
    };
    DWORD error = GetLastError();
    errno = EIO;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].windows == error) errno = numbers[i].number;
}

/* A path as Windows takes it, in new memory: beyond 260 characters only in the form that begins
 * with \\?\, which is absolute. NULL and errno: no memory, or not UTF-8. */
static wchar_t *wide_path(const char *path)
{
    int count = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
    wchar_t *given = count > 0 ? malloc((size_t)count * sizeof *given) : NULL, *full = NULL;
    errno = count > 0 ? ENOMEM : EILSEQ;
    if (given == NULL) return NULL;
    MultiByteToWideChar(CP_UTF8, 0, path, -1, given, count);
    DWORD room = GetFullPathNameW(given, 0, NULL, NULL);
    if (room < 240 || wcsncmp(given, L"\\\\?\\", 4) == 0) return given; /* folders: 248 */
    full = malloc((room + 8) * sizeof *full);
    if (full != NULL) {
        GetFullPathNameW(given, room, full + 8, NULL);
        bool share = full[8] == L'\\' && full[9] == L'\\'; /* of which the first goes */
        const wchar_t *prefix = share ? L"\\\\?\\UNC" : L"\\\\?\\";
        size_t length = wcslen(prefix), begin = 8 + (share ? 1 : 0) - length;
        wmemcpy(full + begin, prefix, length);
        wmemmove(full, full + begin, wcslen(full + begin) + 1);
    }
    free(given);
    return full;
}

/* CreateFileW; others may read the file, and `share` more. */
static HANDLE open_handle(const char *path, DWORD access, DWORD share, DWORD how)
{
    wchar_t *wide = wide_path(path);
    if (wide == NULL) return INVALID_HANDLE_VALUE;
    HANDLE handle = CreateFileW(wide, access, FILE_SHARE_READ | share, NULL, how,
                                FILE_ATTRIBUTE_NORMAL, NULL);
    if (handle == INVALID_HANDLE_VALUE) take_error();
    free(wide);
    return handle;
}

/* The handle as a stream of bytes, which closes it. */
static FILE *stream_of(HANDLE handle, const char *mode)
{
    if (handle == INVALID_HANDLE_VALUE) return NULL;
    int number = _open_osfhandle((intptr_t)handle, _O_BINARY);
    FILE *file = number >= 0 ? _fdopen(number, mode) : NULL;
    if (number < 0)
        CloseHandle(handle);
    else if (file == NULL)
        _close(number);
    return file;
}

static DWORD attributes_of(const char *path)
{
    wchar_t *wide = wide_path(path);
    DWORD attributes = wide != NULL ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
    if (wide != NULL && attributes == INVALID_FILE_ATTRIBUTES) take_error();
    free(wide);
    return attributes;
}

q3_status q3_open_file(FILE **file, const char *path, bool any, q3_error *error)
{
    if (q3_is_folder(path)) return fail_kind(error, "read", path, "folder");
    HANDLE handle = open_handle(path, GENERIC_READ, FILE_SHARE_DELETE, OPEN_EXISTING);
    bool other = handle != INVALID_HANDLE_VALUE && GetFileType(handle) != FILE_TYPE_DISK;
    if (other && !any) {
        CloseHandle(handle);
        return fail_kind(error, "read", path, "device");
    }
    *file = stream_of(handle, "rb");
    return *file != NULL ? Q3_OK : q3_fail_file(error, "read", path);
}

q3_status q3_map_file(q3_mapping *mapping, FILE *file, const char *path, q3_error *error)
{
    HANDLE handle = (HANDLE)_get_osfhandle(_fileno(file)), section = NULL;
    LARGE_INTEGER size = {0};
    void *base = NULL;
    if (!GetFileSizeEx(handle, &size) || size.QuadPart <= 0) return Q3_OK;
    if ((uint64_t)size.QuadPart <= SIZE_MAX)
        section = CreateFileMappingW(handle, NULL, PAGE_READONLY, 0, 0, NULL);
    if (section != NULL) {
        base = MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0);
        CloseHandle(section); /* the view keeps it alive */
    }
    if (base == NULL) return fail_map(error, path, (uint64_t)size.QuadPart);
    *mapping = (q3_mapping){base, (size_t)size.QuadPart, base, true};
    return Q3_OK;
}

void q3_unmap_file(q3_mapping *mapping)
{
    UnmapViewOfFile(mapping->base);
}

bool q3_exists(const char *path)
{
    return attributes_of(path) != INVALID_FILE_ATTRIBUTES || errno != ENOENT;
}

bool q3_is_folder(const char *path)
{
    DWORD attributes = attributes_of(path);
    return attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0;
}

/* Nothing is read or written through the handle; a folder has an identity too. */
static bool identity_of(const char *path, BY_HANDLE_FILE_INFORMATION *about)
{
    wchar_t *wide = wide_path(path);
    HANDLE handle = INVALID_HANDLE_VALUE;
    if (wide != NULL)
        handle = CreateFileW(wide, 0, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                             OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    free(wide);
    if (handle == INVALID_HANDLE_VALUE) return false;
    bool known = GetFileInformationByHandle(handle, about) != 0;
    CloseHandle(handle);
    return known;
}

static bool is_one(const BY_HANDLE_FILE_INFORMATION *a, const BY_HANDLE_FILE_INFORMATION *b)
{
    return a->dwVolumeSerialNumber == b->dwVolumeSerialNumber &&
        a->nFileIndexHigh == b->nFileIndexHigh && a->nFileIndexLow == b->nFileIndexLow;
}

bool q3_same_file(const char *a, const char *b)
{
    BY_HANDLE_FILE_INFORMATION x, y;
    return strcmp(a, b) == 0 || (identity_of(a, &x) && identity_of(b, &y) && is_one(&x, &y));
}

bool q3_stream_is(int stream, const char *path)
{
    BY_HANDLE_FILE_INFORMATION x, y;
    HANDLE handle = (HANDLE)_get_osfhandle(stream);
    return GetFileType(handle) == FILE_TYPE_DISK && GetFileInformationByHandle(handle, &x) &&
        identity_of(path, &y) && is_one(&x, &y);
}

bool q3_remove(const char *path)
{
    wchar_t *wide = wide_path(path);
    bool removed = wide != NULL && DeleteFileW(wide) != 0;
    free(wide);
    return removed;
}

/* The path itself: links are left to the system. */
char *q3_resolve(const char *path)
{
    return q3_join(path, "", "");
}

bool q3_is_standard(const char *path)
{
    return strcmp(path, "-") == 0;
}

/* A device such as NUL. */
q3_status q3_open_stream(FILE **stream, const char *path, q3_error *error)
{
    *stream = NULL;
    if (q3_is_folder(path)) return fail_kind(error, "write", path, "folder");
    HANDLE handle = open_handle(path, GENERIC_WRITE, FILE_SHARE_WRITE, OPEN_EXISTING);
    if (handle == INVALID_HANDLE_VALUE) return Q3_OK;
    if (GetFileType(handle) == FILE_TYPE_DISK) {
        CloseHandle(handle);
        return Q3_OK;
    }
    *stream = stream_of(handle, "wb");
    return *stream != NULL ? Q3_OK : q3_fail_file(error, "write", path);
}

/* Shared for removal alone, which a signal may ask for while it is open. */
FILE *q3_create_new(const char *path)
{
    return stream_of(open_handle(path, GENERIC_READ | GENERIC_WRITE, FILE_SHARE_DELETE, CREATE_NEW),
                     "wb");
}

void q3_take_mode(FILE *file, const char *target, bool writable)
{
    (void)file, (void)target, (void)writable;
}

FILE *q3_open_again(const char *path, bool fresh)
{
    FILE *file = stream_of(open_handle(path, GENERIC_READ | GENERIC_WRITE, 0, OPEN_ALWAYS), "r+b");
    if (file == NULL || !fresh || _chsize_s(_fileno(file), 0) == 0) return file;
    fclose(file);
    return NULL;
}

bool q3_sync_file(FILE *file)
{
    return fflush(file) == 0 && _commit(_fileno(file)) == 0;
}

bool q3_file_size(FILE *file, uint64_t *size)
{
    int64_t end = _fseeki64(file, 0, SEEK_END) == 0 ? _ftelli64(file) : -1;
    *size = end >= 0 ? (uint64_t)end : 0;
    return end >= 0;
}

bool q3_seek_to(FILE *file, uint64_t offset)
{
    return _fseeki64(file, (int64_t)offset, SEEK_SET) == 0;
}

bool q3_replace_file(const char *from, const char *to)
{
    wchar_t *source = wide_path(from), *target = source != NULL ? wide_path(to) : NULL;
    bool replaced = target != NULL && MoveFileExW(source, target, MOVEFILE_REPLACE_EXISTING) != 0;
    if (target != NULL && !replaced) take_error();
    free(source);
    free(target);
    return replaced;
}

void q3_will_need(const q3_mapping *mapping, const void *data, size_t size)
{
    (void)mapping, (void)data, (void)size;
}

void q3_done_with(const q3_mapping *mapping, const void *data, size_t size)
{
    (void)mapping, (void)data, (void)size;
}

void q3_binary(FILE *file)
{
    _setmode(_fileno(file), _O_BINARY);
}

/* ==== POSIX =================================================================================== */

#elif defined(Q3_HAS_MMAP)

/* What is no regular file, in words; NULL: it is one. */
static const char *kind_of(const struct stat *about)
{
    if (S_ISREG(about->st_mode)) return NULL;
    return S_ISDIR(about->st_mode) ? "folder" : S_ISFIFO(about->st_mode) ? "pipe" :
        S_ISSOCK(about->st_mode) ? "socket" : "device";
}

/* Opened once, and looked at when it is open. A pipe that nobody writes is not waited for, unless
 * any stream will do, which may be a terminal too, but no other device: /dev/zero has no end. */
q3_status q3_open_file(FILE **file, const char *path, bool any, q3_error *error)
{
    struct stat about;
    int number = open(path, O_RDONLY | O_NOCTTY | (any ? 0 : O_NONBLOCK));
    if (number < 0 && errno == ENXIO) return fail_kind(error, "read", path, "socket");
    if (number < 0) return q3_fail_file(error, "read", path);
    bool known = fstat(number, &about) == 0;
    const char *kind = known ? kind_of(&about) : NULL;
    bool stream = kind != NULL && (S_ISFIFO(about.st_mode) || isatty(number));
    *file = known && (kind == NULL || (any && stream)) ? fdopen(number, "rb") : NULL;
    if (*file != NULL) return Q3_OK;
    q3_status status = kind != NULL && !(any && stream) ? fail_kind(error, "read", path, kind)
                                                        : q3_fail_file(error, "read", path);
    close(number);
    return status;
}

q3_status q3_map_file(q3_mapping *mapping, FILE *file, const char *path, q3_error *error)
{
    struct stat about;
    void *base = MAP_FAILED;
    if (fstat(fileno(file), &about) != 0) return q3_fail_file(error, "read", path);
    if (about.st_size <= 0) return Q3_OK; /* /proc has files of which no size is told */
    if ((uint64_t)about.st_size <= SIZE_MAX)
        base = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, fileno(file), 0);
    if (base == MAP_FAILED) return fail_map(error, path, (uint64_t)about.st_size);
    *mapping = (q3_mapping){base, (size_t)about.st_size, base, true};
    return Q3_OK;
}

void q3_unmap_file(q3_mapping *mapping)
{
    munmap(mapping->base, mapping->size);
}

bool q3_exists(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

bool q3_is_folder(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

static bool is_one(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* After a call that failed: no file can be reached by the path; else it is not known. */
static bool is_nowhere(void)
{
    return errno == ENOENT || errno == ENOTDIR || errno == EACCES || errno == ELOOP ||
        errno == ENAMETOOLONG;
}

bool q3_same_file(const char *a, const char *b)
{
    struct stat x, y;
    if (strcmp(a, b) == 0) return true;
    if (stat(a, &x) != 0 || stat(b, &y) != 0) return !is_nowhere();
    return is_one(&x, &y);
}

q3_status q3_folder_holds(bool *holds, const char *folder, const char *path, q3_error *error)
{
    struct stat file, other;
    const struct dirent *entry;
    int why = 0;
    *holds = false;
    if (stat(path, &file) != 0)
        return is_nowhere() ? Q3_OK : q3_fail_file(error, "read", path);
    if (stat(folder, &other) != 0)
        return is_nowhere() ? Q3_OK : q3_fail_file(error, "read", folder);
    DIR *names = S_ISDIR(other.st_mode) ? opendir(folder) : NULL;
    if (names == NULL)
        return S_ISDIR(other.st_mode) ? q3_fail_file(error, "read", folder) : Q3_OK;
    do {
        errno = 0;
        entry = readdir(names);
        bool known = entry != NULL && fstatat(dirfd(names), entry->d_name, &other, 0) == 0;
        *holds = known && is_one(&file, &other);
        if (!known && !is_nowhere()) why = errno; /* 0 behind the last */
    } while (entry != NULL && why == 0 && !*holds);
    closedir(names);
    errno = why;
    return why == 0 ? Q3_OK : q3_fail_file(error, "read", folder);
}

/* What takes the number can be read only where the stream is written, and the other way round. */
void q3_keep_streams(void)
{
    for (int i = 0; i < 3; i++)
        if (fcntl(i, F_GETFD) < 0 && open("/dev/null", i == 0 ? O_WRONLY : O_RDONLY) < 0) return;
}

bool q3_stream_is(int stream, const char *path)
{
    struct stat x, y;
    if (fstat(stream, &x) != 0) return errno != EBADF;
    if (!S_ISREG(x.st_mode)) return false;
    return stat(path, &y) == 0 ? is_one(&x, &y) : !is_nowhere();
}

bool q3_remove(const char *path)
{
    return unlink(path) == 0;
}

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

/* What /dev/stdout and the like stand for: a number of an open file, written on where it is; -1 for
 * all other paths. */
static int open_number(const char *path)
{
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};
    if (strcmp(path, "/dev/stdout") == 0) return 1;
    if (strcmp(path, "/dev/stderr") == 0) return 2;
    for (size_t i = 0; i < 2; i++) {
        size_t begin = strlen(folders[i]), end = strlen(path);
        int number = 0;
        if (strncmp(path, folders[i], begin) != 0) continue;
        if (end == begin || end - begin > 8) return -1;
        for (; begin < end && path[begin] >= '0' && path[begin] <= '9'; begin++)
            number = 10 * number + (path[begin] - '0');
        return begin == end ? number : -1;
    }
    return -1;
}

/* As many links as Linux follows: what is one still cannot be opened. */
char *q3_resolve(const char *path)
{
    char link[4096], *now = q3_join(path, "", "");
    for (size_t i = 0; i < 40 && now != NULL && open_number(now) < 0; i++) {
        ssize_t length = readlink(now, link, sizeof link - 1);
        char *slash = strrchr(now, '/'), *next;
        if (length <= 0 || (size_t)length == sizeof link - 1) break;
        link[length] = 0;
        if (link[0] != '/' && slash != NULL)
            slash[1] = 0;
        else
            now[0] = 0;
        next = q3_join(now, link, "");
        free(now);
        now = next;
    }
    return now;
}

bool q3_is_standard(const char *path)
{
    char *target = q3_resolve(path);
    bool is = strcmp(path, "-") == 0 || (target != NULL && open_number(target) == 1);
    free(target);
    return is;
}

q3_status q3_open_stream(FILE **stream, const char *path, q3_error *error)
{
    struct stat about;
    int number = open_number(path);
    *stream = NULL;
    if (number < 0 && stat(path, &about) != 0)
        return errno == ELOOP ? q3_fail_file(error, "write", path) : Q3_OK;
    if (number < 0 && S_ISREG(about.st_mode)) return Q3_OK;
    if (number < 0 && S_ISDIR(about.st_mode)) return fail_kind(error, "write", path, "folder");
    number = number >= 0 ? dup(number) : open(path, O_WRONLY | O_NOCTTY);
    *stream = number >= 0 ? fdopen(number, "wb") : NULL;
    if (*stream != NULL) return Q3_OK;
    q3_status status = q3_fail_file(error, "write", path);
    if (number >= 0) close(number);
    return status;
}

FILE *q3_create_new(const char *path)
{
    int number = open(path, O_RDWR | O_CREAT | O_EXCL, 0666);
    FILE *file = number >= 0 ? fdopen(number, "wb") : NULL;
    int why = errno;
    if (number >= 0 && file == NULL) {
        close(number);
        unlink(path);
    }
    errno = why;
    return file;
}

/* Some file systems know no modes: then there are none to keep. */
void q3_take_mode(FILE *file, const char *target, bool writable)
{
    struct stat about;
    if (stat(target, &about) == 0 && S_ISREG(about.st_mode))
        (void)fchmod(fileno(file), (about.st_mode & 0777) | (writable ? S_IRUSR | S_IWUSR : 0));
}

/* The lock goes with this program. */
FILE *q3_open_again(const char *path, bool fresh)
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

bool q3_file_size(FILE *file, uint64_t *size)
{
    off_t end = fseeko(file, 0, SEEK_END) == 0 ? ftello(file) : -1;
    *size = end >= 0 ? (uint64_t)end : 0;
    return end >= 0;
}

bool q3_sync_file(FILE *file)
{
    return fflush(file) == 0 && (fsync(fileno(file)) == 0 || errno == EINVAL);
}

bool q3_seek_to(FILE *file, uint64_t offset)
{
    off_t position = (off_t)offset;
    return position >= 0 && (uint64_t)position == offset && fseeko(file, position, SEEK_SET) == 0;
}

bool q3_replace_file(const char *from, const char *to)
{
    return rename(from, to) == 0;
}

void q3_binary(FILE *file)
{
    (void)file;
}

/* ==== C alone ================================================================================= */

#else

q3_status q3_open_file(FILE **file, const char *path, bool any, q3_error *error)
{
    (void)any;
    *file = fopen(path, "rb");
    return *file != NULL ? Q3_OK : q3_fail_file(error, "read", path);
}

q3_status q3_map_file(q3_mapping *mapping, FILE *file, const char *path, q3_error *error)
{
    (void)mapping, (void)file, (void)path, (void)error;
    return Q3_OK;
}

void q3_unmap_file(q3_mapping *mapping)
{
    (void)mapping;
}

bool q3_exists(const char *path)
{
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return errno != ENOENT && errno != ENOTDIR;
    fclose(file);
    return true;
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

bool q3_stream_is(int stream, const char *path)
{
    (void)stream, (void)path;
    return false;
}

bool q3_remove(const char *path)
{
    return remove(path) == 0;
}

void q3_will_need(const q3_mapping *mapping, const void *data, size_t size)
{
    (void)mapping, (void)data, (void)size;
}

void q3_done_with(const q3_mapping *mapping, const void *data, size_t size)
{
    (void)mapping, (void)data, (void)size;
}

char *q3_resolve(const char *path)
{
    return q3_join(path, "", "");
}

bool q3_is_standard(const char *path)
{
    return strcmp(path, "-") == 0;
}

q3_status q3_open_stream(FILE **stream, const char *path, q3_error *error)
{
    (void)path, (void)error;
    *stream = NULL;
    return Q3_OK;
}

FILE *q3_create_new(const char *path)
{
    return fopen(path, "wbx");
}

void q3_take_mode(FILE *file, const char *target, bool writable)
{
    (void)file, (void)target, (void)writable;
}

FILE *q3_open_again(const char *path, bool fresh)
{
    FILE *file = fopen(path, fresh ? "w+b" : "r+b");
    return file != NULL || fresh ? file : q3_create_new(path);
}

bool q3_file_size(FILE *file, uint64_t *size)
{
    long end = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    *size = end >= 0 ? (uint64_t)end : 0;
    return end >= 0;
}

bool q3_sync_file(FILE *file)
{
    return fflush(file) == 0;
}

bool q3_seek_to(FILE *file, uint64_t offset)
{
    long position = (long)offset;
    return position >= 0 && (uint64_t)position == offset && fseek(file, position, SEEK_SET) == 0;
}

bool q3_replace_file(const char *from, const char *to)
{
    return rename(from, to) == 0;
}

void q3_binary(FILE *file)
{
    (void)file;
}

#endif

#if !defined(Q3_HAS_MMAP)

/* By the folder that the path names. */
q3_status q3_folder_holds(bool *holds, const char *folder, const char *path, q3_error *error)
{
    char *before = q3_join(path, "", "");
    if (before == NULL) return q3_no_memory(error, path);
    size_t length = strlen(path);
    while (length > 0 && strchr("/\\", path[length - 1]) == NULL) length--;
    before[length > 1 ? length - 1 : length] = 0;
    *holds = q3_exists(path) && q3_same_file(length > 0 ? before : ".", folder);
    free(before);
    return Q3_OK;
}

void q3_keep_streams(void)
{
}

#endif
