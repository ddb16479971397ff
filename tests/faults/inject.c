/* SPDX-License-Identifier: MIT */
/* inject.c - see inject.h. */
#define _GNU_SOURCE /* the types of what stands in front of libc */
#include "faults/inject.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <unwind.h>

const char *const inject_kind_names[INJECT_KINDS] = {
    "allocate", "open", "status", "lock", "read", "map", "write", "flush", "sync", "seek",
    "rename", "close", "remove", "hint",
};

/* What the system may say. No ENOENT: that a file is not there is no fault. */
static const int reasons[INJECT_KINDS][3] = {
    {ENOMEM, ENOMEM, ENOMEM}, {EMFILE, EACCES, EINTR}, {EIO, ENOMEM, EOVERFLOW},
    {ENOLCK, EINTR, ENOLCK},  {EIO, EINTR, EIO},       {ENOMEM, EACCES, EAGAIN},
    {ENOSPC, EINTR, EIO},     {ENOSPC, EINTR, EIO},    {EIO, EINTR, ENOSPC},
    {EIO, EOVERFLOW, EIO},    {EACCES, EIO, ENOSPC},   {ENOSPC, EINTR, EIO},
    {EACCES, EIO, EACCES},    {ENOSYS, EINVAL, EIO},
};

/* ==== Sites =================================================================================== */

#define SITES ((size_t)1 << 15)
#define FRAMES 16

typedef struct site {
    uint64_t key; /* 0: none */
    uint32_t calls, now;
} site;

/* A stream, or a file without one: what the run opened and did not close. */
typedef struct file {
    FILE *stream;
    int number; /* -1: a free row */
    int flags;
    bool failed; /* its error indicator, where a fault set it */
    char path[512];
} file;

static enum phase { OFF, COUNTING, FAULTING, FAULTED } phase, stopped;
static inject_extent extent;
static bool healed;
static size_t end_at_sync; /* 0: never */
static uintptr_t outermost; /* frames above this address are not the run's */
static const inject_hooks *hooks;
static site *sites; /* [SITES], shared with children */
static inject_fault fault;
static inject_left left;
static file files[64];

/* Calls of inject.c and its hooks are nobody's. */
static bool busy;

typedef struct frames {
    uint64_t key;
    size_t count;
} frames;

static _Unwind_Reason_Code add_frame(struct _Unwind_Context *context, void *user)
{
    frames *seen = user;
    if ((uintptr_t)_Unwind_GetCFA(context) > outermost) return _URC_END_OF_STACK;
    seen->key = (seen->key ^ (uint64_t)_Unwind_GetIP(context)) * UINT64_C(0x9E3779B97F4A7C15);
    seen->key ^= seen->key >> 29;
    return ++seen->count < FRAMES ? _URC_NO_REASON : _URC_END_OF_STACK;
}

static site *find_site(inject_kind kind)
{
    frames seen = {(uint64_t)kind + 1, 0};
    _Unwind_Backtrace(add_frame, &seen);
    for (size_t i = 0; i < SITES; i++) {
        site *s = &sites[(seen.key + i) % SITES];
        if (s->key == 0) s->key = seen.key;
        if (s->key == seen.key) return s;
    }
    fprintf(stderr, "faults: too many sites\n");
    abort();
}

void inject_totals(size_t *count, size_t *calls)
{
    *count = *calls = 0;
    for (size_t i = 0; i < SITES; i++) {
        *count += sites[i].key != 0;
        *calls += sites[i].calls;
    }
}

/* frame: of what the run's main function is called beside. */
static void begin(void *frame)
{
    outermost = (uintptr_t)frame + 8 * sizeof frame;
    left = (inject_left){.returned = false};
    memset(files, 0, sizeof files);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) files[i].number = -1;
    files[0] = (file){stdin, 0, O_RDONLY, false, "../stdin"};
    files[1] = (file){stdout, 1, O_WRONLY | O_APPEND, false, "../out"};
    files[2] = (file){stderr, 2, O_WRONLY | O_APPEND, false, "../err"};
}

void inject_forget(void)
{
    if (sites == NULL)
        sites = mmap(NULL, SITES * sizeof *sites, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sites == MAP_FAILED) abort();
    memset(sites, 0, SITES * sizeof *sites);
}

void inject_count(void)
{
    begin(__builtin_frame_address(0));
    phase = COUNTING;
}

void inject_start(inject_extent which, const inject_hooks *with)
{
    for (size_t i = 0; i < SITES; i++) sites[i].now = 0;
    begin(__builtin_frame_address(0));
    extent = which;
    hooks = with;
    phase = FAULTING;
}

void inject_stop(void)
{
    stopped = phase;
    phase = OFF;
}

void inject_go_on(void)
{
    phase = stopped;
}

void inject_heal(void)
{
    healed = true;
}

void inject_end_at_sync(size_t call)
{
    end_at_sync = call;
}

void inject_report(inject_left *report)
{
    for (size_t i = 3; i < sizeof files / sizeof *files; i++) left.files += files[i].number >= 0;
    *report = left;
}

void __sanitizer_print_stack_trace(void) __attribute__((weak));

void inject_trace(void)
{
    if (__sanitizer_print_stack_trace != NULL)
        __sanitizer_print_stack_trace();
    else
        fprintf(stderr, "  (a build with a sanitizer says where)\n");
}

/* ==== Failing ================================================================================= */

/* In the parent: false, when the child has ended. In the child: true. */
static bool fork_here(const site *s, inject_kind kind, inject_mode mode, FILE *stream)
{
    int error = errno, status = 0;
    busy = true;
    bool files_fail = mode == INJECT_FROM_ON && kind != INJECT_ALLOCATE;
    fault = (inject_fault){kind, mode, s->now, s->now == 1,
                           reasons[kind][(s->now + s->key + mode) % 3],
                           files_fail || stream == stdout, stream == stderr};
    pid_t child = fork();
    if (child == 0) {
        phase = FAULTED;
        hooks->enter();
        busy = false;
        errno = fault.error;
        return true;
    }
    if (child < 0 || waitpid(child, &status, 0) != child) abort();
    hooks->ended(&fault, status);
    busy = false;
    errno = error;
    return false;
}

static bool later_fails(inject_kind kind)
{
    if (healed || fault.mode != INJECT_FROM_ON || kind == INJECT_REMOVE || kind == INJECT_HINT)
        return false;
    if ((kind == INJECT_ALLOCATE) != (fault.kind == INJECT_ALLOCATE)) return false;
    errno = reasons[kind][0];
    return true;
}

/* Whether this call must fail, errno being set. *part: it does half of its work. */
static bool fails_on(inject_kind kind, FILE *stream, bool *part)
{
    if (part != NULL) *part = false;
    if (phase == OFF || busy) return false;
    if (phase == FAULTED) return stream != stderr && later_fails(kind);
    site *s = find_site(kind);
    if (phase == COUNTING) {
        s->calls++;
        return false;
    }
    s->now++;
    if (s->now > s->calls) {
        busy = true;
        fprintf(stderr, "faults: the run is another one than it was\n");
        inject_trace();
        abort();
    }
    uint32_t first = extent == INJECT_FEW ? 1 : 2;
    bool last = s->now == s->calls && extent != INJECT_FEW;
    if (extent != INJECT_EVERY && s->now > first && !last) return false;
    if (fork_here(s, kind, INJECT_ONCE, stream)) return true;
    if (extent == INJECT_FEW) return false;
    bool on = s->now == 1 && kind != INJECT_REMOVE && kind != INJECT_HINT && stream != stderr;
    if (on && fork_here(s, kind, INJECT_FROM_ON, stream)) return true;
    if (part == NULL || !fork_here(s, kind, INJECT_PART, stream)) return false;
    *part = true;
    return true;
}

static bool fails(inject_kind kind)
{
    return fails_on(kind, NULL, NULL);
}

static bool counts(void)
{
    return phase != OFF && !busy;
}

/* ==== Memory ================================================================================== */

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__wrap_realloc(void *block, size_t size);
void __real_free(void *block);
void __wrap_free(void *block);

static void *counted(void *block)
{
    if (counts() && block != NULL) left.blocks++;
    return block;
}

void *__wrap_malloc(size_t size)
{
    return fails(INJECT_ALLOCATE) ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails(INJECT_ALLOCATE) ? NULL : counted(__real_calloc(count, size));
}

void *__wrap_realloc(void *block, size_t size)
{
    if (fails(INJECT_ALLOCATE)) return NULL;
    return block == NULL ? counted(__real_realloc(block, size)) : __real_realloc(block, size);
}

void __wrap_free(void *block)
{
    if (counts() && block != NULL) left.blocks--;
    __real_free(block);
}

/* ==== Open files ============================================================================== */

static file *row_of(FILE *stream, int number)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (files[i].number >= 0 && (stream != NULL ? files[i].stream == stream
                                                    : files[i].number == number))
            return &files[i];
    return NULL;
}

/* A path that the run may write is relative to its folder, and without "..". */
static void writes(const char *path)
{
    if (counts() && (path[0] == '/' || strstr(path, "..") != NULL))
        snprintf(left.outside, sizeof left.outside, "%s", path);
}

static void opened(FILE *stream, int number, int flags, const char *path)
{
    if (!counts() || number < 0) return;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (files[i].number >= 0) continue;
        files[i] = (file){stream, number, flags & (O_ACCMODE | O_APPEND), false, ""};
        snprintf(files[i].path, sizeof files[i].path, "%s", path);
        return;
    }
    fprintf(stderr, "faults: too many open files\n");
    abort();
}

static void closed(FILE *stream, int number)
{
    file *row = row_of(stream, number);
    if (counts() && row != NULL) row->number = -1;
}

void inject_reopen(void)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        file *row = &files[i];
        if (row->number < 0) continue;
        off_t at = lseek(row->number, 0, SEEK_CUR);
        int number = open(row->path, row->flags);
        if (number < 0 || dup2(number, row->number) < 0 || close(number) != 0 ||
            lseek(row->number, at, SEEK_SET) != at) {
            perror(row->path);
            _exit(98);
        }
    }
}

FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);
FILE *__real_fdopen(int number, const char *mode);
FILE *__wrap_fdopen(int number, const char *mode);
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __real_dup(int number);
int __real_fstat(int number, struct stat *about);
int __real_ftruncate(int number, off_t size);
int __wrap_dup(int number);
int __real_fclose(FILE *stream);
int __wrap_fclose(FILE *stream);
int __real_close(int number);
int __wrap_close(int number);

FILE *__wrap_fopen(const char *path, const char *mode)
{
    if (fails(INJECT_OPEN)) return NULL;
    FILE *stream = __real_fopen(path, mode);
    bool both = strchr(mode, '+') != NULL, out = mode[0] != 'r';
    if (stream != NULL && (both || out)) writes(path);
    if (stream != NULL)
        opened(stream, fileno(stream), both ? O_RDWR : out ? O_WRONLY : O_RDONLY, path);
    return stream;
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
    return __wrap_fopen(path, mode);
}

FILE *__wrap_fdopen(int number, const char *mode)
{
    if (fails(INJECT_OPEN)) return NULL;
    FILE *stream = __real_fdopen(number, mode);
    file *row = row_of(NULL, number);
    if (counts() && stream != NULL && row != NULL) row->stream = stream;
    return stream;
}

int __wrap_open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    int mode = (flags & O_CREAT) != 0 ? va_arg(arguments, int) : 0;
    va_end(arguments);
    if (fails(INJECT_OPEN)) return -1;
    int number = __real_open(path, flags, mode);
    if (number >= 0 && (flags & O_ACCMODE) != O_RDONLY) writes(path);
    opened(NULL, number, flags, path);
    return number;
}

int __wrap_open64(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    int mode = (flags & O_CREAT) != 0 ? va_arg(arguments, int) : 0;
    va_end(arguments);
    return __wrap_open(path, flags, mode);
}

int __wrap_dup(int number)
{
    if (fails(INJECT_OPEN)) return -1;
    int result = __real_dup(number);
    file *row = row_of(NULL, number);
    if (row != NULL) opened(NULL, result, row->flags, row->path);
    return result;
}

/* What could not be written last: a byte is missing. */
static void lose(int number)
{
    struct stat about;
    if (__real_fstat(number, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0 &&
        __real_ftruncate(number, about.st_size - 1) != 0)
        abort();
    __real_close(number);
}

/* A file is closed whatever closing it says. */
int __wrap_fclose(FILE *stream)
{
    bool bad = fails_on(INJECT_CLOSE, stream, NULL);
    int error = errno;
    const file *row = row_of(stream, -1);
    bool writable = row != NULL && (row->flags & O_ACCMODE) != O_RDONLY;
    int again = bad && writable ? __real_dup(fileno(stream)) : -1;
    closed(stream, -1);
    int result = __real_fclose(stream);
    if (again >= 0) lose(again);
    if (bad) errno = error;
    return bad ? EOF : result;
}

int __wrap_close(int number)
{
    bool bad = fails(INJECT_CLOSE);
    int error = errno;
    closed(NULL, number);
    int result = __real_close(number);
    if (bad) errno = error;
    return bad ? -1 : result;
}

/* ==== What is done with files ================================================================= */

int __real_stat(const char *path, struct stat *about);
int __wrap_stat(const char *path, struct stat *about);
int __wrap_stat64(const char *path, struct stat *about);
int __wrap_fstat(int number, struct stat *about);
int __wrap_fstat64(int number, struct stat *about);
int __real_fstatat(int folder, const char *path, struct stat *about, int flags);
int __wrap_fstatat(int folder, const char *path, struct stat *about, int flags);
int __wrap_fstatat64(int folder, const char *path, struct stat *about, int flags);
ssize_t __real_readlink(const char *path, char *link, size_t size);
ssize_t __wrap_readlink(const char *path, char *link, size_t size);
int __real_fchmod(int number, mode_t mode);
int __wrap_fchmod(int number, mode_t mode);
DIR *__real_opendir(const char *path);
DIR *__wrap_opendir(const char *path);
struct dirent *__real_readdir(DIR *names);
struct dirent *__wrap_readdir(DIR *names);
struct dirent *__wrap_readdir64(DIR *names);
int __real_closedir(DIR *names);
int __wrap_closedir(DIR *names);
int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __real_fcntl(int number, int what, ...);
int __wrap_fcntl(int number, int what, ...);
int __wrap_fcntl64(int number, int what, ...);
void *__real_mmap(void *at, size_t size, int may, int flags, int number, off_t offset);
void *__wrap_mmap(void *at, size_t size, int may, int flags, int number, off_t offset);
void *__wrap_mmap64(void *at, size_t size, int may, int flags, int number, off_t offset);
int __real_munmap(void *at, size_t size);
int __wrap_munmap(void *at, size_t size);
int __wrap_ftruncate(int number, off_t size);
int __wrap_ftruncate64(int number, off_t size);
int __real_fsync(int number);
int __wrap_fsync(int number);
int __real_fseeko(FILE *stream, off_t offset, int whence);
int __wrap_fseeko(FILE *stream, off_t offset, int whence);
int __wrap_fseeko64(FILE *stream, off_t offset, int whence);
off_t __real_ftello(FILE *stream);
off_t __wrap_ftello(FILE *stream);
off_t __wrap_ftello64(FILE *stream);
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __real_remove(const char *path);
int __wrap_remove(const char *path);
long __real_sysconf(int name);
long __wrap_sysconf(int name);
int __real_posix_madvise(void *at, size_t size, int advice);
int __wrap_posix_madvise(void *at, size_t size, int advice);
int __real_madvise(void *at, size_t size, int advice);
int __wrap_madvise(void *at, size_t size, int advice);

int __wrap_stat(const char *path, struct stat *about)
{
    return fails(INJECT_STATUS) ? -1 : __real_stat(path, about);
}

int __wrap_stat64(const char *path, struct stat *about)
{
    return __wrap_stat(path, about);
}

int __wrap_fstat(int number, struct stat *about)
{
    return fails(INJECT_STATUS) ? -1 : __real_fstat(number, about);
}

int __wrap_fstat64(int number, struct stat *about)
{
    return __wrap_fstat(number, about);
}

int __wrap_fstatat(int folder, const char *path, struct stat *about, int flags)
{
    return fails(INJECT_STATUS) ? -1 : __real_fstatat(folder, path, about, flags);
}

int __wrap_fstatat64(int folder, const char *path, struct stat *about, int flags)
{
    return __wrap_fstatat(folder, path, about, flags);
}

ssize_t __wrap_readlink(const char *path, char *link, size_t size)
{
    return fails(INJECT_STATUS) ? -1 : __real_readlink(path, link, size);
}

/* Some file systems know no modes: then it says so. */
int __wrap_fchmod(int number, mode_t mode)
{
    return fails(INJECT_HINT) ? -1 : __real_fchmod(number, mode);
}

DIR *__wrap_opendir(const char *path)
{
    if (fails(INJECT_OPEN)) return NULL;
    DIR *names = __real_opendir(path);
    if (counts() && names != NULL) left.files++;
    return names;
}

struct dirent *__wrap_readdir(DIR *names)
{
    return fails(INJECT_READ) ? NULL : __real_readdir(names);
}

struct dirent *__wrap_readdir64(DIR *names)
{
    return __wrap_readdir(names);
}

int __wrap_closedir(DIR *names)
{
    bool bad = fails(INJECT_CLOSE);
    int error = errno;
    if (counts()) left.files--;
    int result = __real_closedir(names);
    if (bad) errno = error;
    return bad ? -1 : result;
}

int __wrap_fcntl(int number, int what, ...)
{
    va_list arguments;
    va_start(arguments, what);
    void *value = va_arg(arguments, void *);
    va_end(arguments);
    if (what != F_GETFD && fails(INJECT_LOCK)) return -1; /* that cannot */
    return __real_fcntl(number, what, value);
}

int __wrap_fcntl64(int number, int what, ...)
{
    va_list arguments;
    va_start(arguments, what);
    void *value = va_arg(arguments, void *);
    va_end(arguments);
    return __wrap_fcntl(number, what, value);
}

void *__wrap_mmap(void *at, size_t size, int may, int flags, int number, off_t offset)
{
    if (fails(INJECT_MAP)) return MAP_FAILED;
    void *mapping = __real_mmap(at, size, may, flags, number, offset);
    if (counts() && mapping != MAP_FAILED) left.mappings++;
    return mapping;
}

void *__wrap_mmap64(void *at, size_t size, int may, int flags, int number, off_t offset)
{
    return __wrap_mmap(at, size, may, flags, number, offset);
}

int __wrap_munmap(void *at, size_t size)
{
    if (counts()) left.mappings--;
    return __real_munmap(at, size);
}

int __wrap_ftruncate(int number, off_t size)
{
    return fails(INJECT_WRITE) ? -1 : __real_ftruncate(number, size);
}

int __wrap_ftruncate64(int number, off_t size)
{
    return __wrap_ftruncate(number, size);
}

int __wrap_fsync(int number)
{
    if (end_at_sync > 0 && --end_at_sync == 0) _exit(0);
    return fails(INJECT_SYNC) ? -1 : __real_fsync(number);
}

int __wrap_fseeko(FILE *stream, off_t offset, int whence)
{
    return fails(INJECT_SEEK) ? -1 : __real_fseeko(stream, offset, whence);
}

int __wrap_fseeko64(FILE *stream, off_t offset, int whence)
{
    return __wrap_fseeko(stream, offset, whence);
}

off_t __wrap_ftello(FILE *stream)
{
    return fails(INJECT_SEEK) ? -1 : __real_ftello(stream);
}

off_t __wrap_ftello64(FILE *stream)
{
    return __wrap_ftello(stream);
}

int __wrap_rename(const char *from, const char *to)
{
    writes(from);
    writes(to);
    return fails(INJECT_RENAME) ? -1 : __real_rename(from, to);
}

int __wrap_remove(const char *path)
{
    writes(path);
    return fails(INJECT_REMOVE) ? -1 : __real_remove(path);
}

int __wrap_unlink(const char *path)
{
    writes(path);
    return fails(INJECT_REMOVE) ? -1 : __real_unlink(path);
}

long __wrap_sysconf(int name)
{
    return fails(INJECT_HINT) ? -1 : __real_sysconf(name);
}

int __wrap_posix_madvise(void *at, size_t size, int advice)
{
    return fails(INJECT_HINT) ? errno : __real_posix_madvise(at, size, advice);
}

int __wrap_madvise(void *at, size_t size, int advice)
{
    return fails(INJECT_HINT) ? -1 : __real_madvise(at, size, advice);
}

/* ==== Streams ================================================================================= */

size_t __real_fread(void *bytes, size_t size, size_t count, FILE *stream);
size_t __wrap_fread(void *bytes, size_t size, size_t count, FILE *stream);
size_t __real_fwrite(const void *bytes, size_t size, size_t count, FILE *stream);
size_t __wrap_fwrite(const void *bytes, size_t size, size_t count, FILE *stream);
int __wrap_fputs(const char *text, FILE *stream);
int __wrap_puts(const char *text);
int __wrap_fputc(int byte, FILE *stream);
int __wrap_putc(int byte, FILE *stream);
int __wrap_putchar(int byte);
int __wrap_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int __wrap_fprintf(FILE *stream, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
int __real_fflush(FILE *stream);
int __wrap_fflush(FILE *stream);
int __real_ferror(FILE *stream);
int __wrap_ferror(FILE *stream);

/* A stream remembers that a call on it failed. */
static void spoil(FILE *stream)
{
    file *row = row_of(stream, -1);
    if (row != NULL) row->failed = true;
}

size_t __wrap_fread(void *bytes, size_t size, size_t count, FILE *stream)
{
    bool part;
    if (!fails_on(INJECT_READ, stream, &part)) return __real_fread(bytes, size, count, stream);
    int error = errno;
    size_t done = part ? __real_fread(bytes, size, count / 2, stream) : 0;
    spoil(stream);
    errno = error;
    return done;
}

size_t __wrap_fwrite(const void *bytes, size_t size, size_t count, FILE *stream)
{
    bool part;
    if (!fails_on(INJECT_WRITE, stream, &part)) return __real_fwrite(bytes, size, count, stream);
    int error = errno;
    size_t done = part ? __real_fwrite(bytes, size, count / 2, stream) : 0;
    spoil(stream);
    errno = error;
    return done;
}

/* The small ones all write through this. */
static int put_bytes(const char *bytes, size_t count, FILE *stream)
{
    bool bad = fails_on(INJECT_WRITE, stream, NULL);
    if (bad) spoil(stream);
    return !bad && __real_fwrite(bytes, 1, count, stream) == count ? (int)count : EOF;
}

int __wrap_fputs(const char *text, FILE *stream)
{
    return put_bytes(text, strlen(text), stream);
}

int __wrap_puts(const char *text)
{
    return put_bytes(text, strlen(text), stdout) < 0 || put_bytes("\n", 1, stdout) < 0 ? EOF : 1;
}

int __wrap_fputc(int byte, FILE *stream)
{
    char one = (char)byte;
    return put_bytes(&one, 1, stream) == 1 ? byte : EOF;
}

int __wrap_putc(int byte, FILE *stream)
{
    return __wrap_fputc(byte, stream);
}

int __wrap_putchar(int byte)
{
    return __wrap_fputc(byte, stdout);
}

int __wrap_printf(const char *format, ...)
{
    va_list arguments;
    if (fails_on(INJECT_WRITE, stdout, NULL)) {
        spoil(stdout);
        return -1;
    }
    va_start(arguments, format);
    int count = vfprintf(stdout, format, arguments);
    va_end(arguments);
    return count;
}

int __wrap_fprintf(FILE *stream, const char *format, ...)
{
    va_list arguments;
    if (fails_on(INJECT_WRITE, stream, NULL)) {
        spoil(stream);
        return -1;
    }
    va_start(arguments, format);
    int count = vfprintf(stream, format, arguments);
    va_end(arguments);
    return count;
}

int __wrap_fflush(FILE *stream)
{
    if (!fails_on(INJECT_FLUSH, stream, NULL)) return __real_fflush(stream);
    spoil(stream);
    return EOF;
}

int __wrap_ferror(FILE *stream)
{
    file *row = row_of(stream, -1);
    return (row != NULL && row->failed) || __real_ferror(stream) != 0;
}
