/* SPDX-License-Identifier: MIT */
/* system.c - what the command alone asks of the operating system: its arguments, terminals, and
 * that nothing is left behind, and something said, where a signal ends it.
 *
 * A handler sees variables and nothing else: hence `now`, the one that the command has. */
#define _POSIX_C_SOURCE 200809L
#include "command/command.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <io.h>
#include <windows.h>
#include <shellapi.h> /* behind windows.h */
#define isatty _isatty
#define fileno _fileno
#elif defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <unistd.h>
#define HAS_SIGNALS 1
#else
#include <unistd.h>
#endif

bool is_terminal(FILE *file)
{
    return isatty(fileno(file)) != 0;
}

/* ==== What is open ============================================================================ */

/* More than any model has, and any verb writes; what goes beyond is not named, or not removed. */
enum { MOST_MAPPED = 1024, MOST_TEMPORARIES = 8, PATH_ROOM = 4096 };

static struct {
    struct {
        const uint8_t *volatile data; /* NULL: free */
        size_t size;
        q3_error said; /* where it can no longer be read */
    } mapped[MOST_MAPPED];
    struct {
        volatile bool there;
        char path[PATH_ROOM];
    } temporary[MOST_TEMPORARIES];
} now;

void remove_temporaries(void)
{
    for (size_t i = 0; i < MOST_TEMPORARIES; i++)
        if (now.temporary[i].there) q3_remove(now.temporary[i].path);
}

#if defined(_WIN32) || defined(HAS_SIGNALS)

static void hold_signals(bool hold);

static void note_mapped(const uint8_t *data, size_t size, const char *path)
{
    size_t i = 0;
    while (i < MOST_MAPPED && now.mapped[i].data != NULL) i++;
    if (i == MOST_MAPPED) return;
    q3_fail(&now.mapped[i].said, Q3_ERROR_FILE,
            "cannot read %.300s: it was cut while it was in use, or its disk fails", path);
    now.mapped[i].size = size;
    now.mapped[i].data = data;
}

static void note_unmapped(const uint8_t *data)
{
    for (size_t i = 0; i < MOST_MAPPED; i++)
        if (now.mapped[i].data == data) now.mapped[i].data = NULL;
}

/* A free place, or that of path. */
static void set_temporary(bool there, const char *path)
{
    for (size_t i = 0; i < MOST_TEMPORARIES && strlen(path) < PATH_ROOM; i++) {
        if (now.temporary[i].there == there) continue;
        if (!there && strcmp(now.temporary[i].path, path) != 0) continue;
        if (there) strcpy(now.temporary[i].path, path);
        now.temporary[i].there = there;
        return;
    }
}

/* No signal comes between the making of a file and its place in the list. */
static void note_temporary(q3_temporary state, const char *path)
{
    hold_signals(true);
    if (state == Q3_TEMPORARY_BEGINS) return;
    set_temporary(state == Q3_TEMPORARY_THERE, path);
    hold_signals(false);
}

static const q3_watch noted = {note_mapped, note_unmapped, note_temporary};

static void say_end(const char *text)
{
    char line[sizeof(q3_error) + 16] = "qwen3moe: ";
    size_t length = strlen(line);
    memcpy(line + length, text, strlen(text));
    length += strlen(text);
    line[length++] = '\n';
#if defined(_WIN32)
    (void)_write(2, line, (unsigned)length);
#else
    if (write(2, line, length) < 0) return; /* there is nobody left to tell */
#endif
}

/* Whether the address lies in a file that is mapped; then the command ends as with any file that
 * cannot be read. */
static bool end_of_file(const uint8_t *address)
{
    for (size_t i = 0; i < MOST_MAPPED; i++) {
        const uint8_t *data = now.mapped[i].data;
        if (data == NULL || address < data || (size_t)(address - data) >= now.mapped[i].size)
            continue;
        remove_temporaries();
        say_end(now.mapped[i].said.text);
        return true;
    }
    return false;
}

#endif

/* ==== Windows ================================================================================= */

#if defined(_WIN32)

static CRITICAL_SECTION section; /* of `now`: Windows calls stop() in a thread of its own */

static void hold_signals(bool hold)
{
    static bool held;
    if (hold && !held) EnterCriticalSection(&section);
    if (!hold && held) LeaveCriticalSection(&section);
    held = hold;
}

/* Ctrl-C, or the window is closed: the section is kept, as nothing comes after it. */
static BOOL WINAPI stop(DWORD event)
{
    (void)event;
    EnterCriticalSection(&section);
    remove_temporaries();
    return FALSE; /* then it ends as without this */
}

static LONG CALLBACK on_exception(EXCEPTION_POINTERS *all)
{
    const EXCEPTION_RECORD *record = all->ExceptionRecord;
    if (record->ExceptionCode == EXCEPTION_IN_PAGE_ERROR && record->NumberParameters >= 2 &&
        end_of_file((const uint8_t *)record->ExceptionInformation[1]))
        _exit(2);
    return EXCEPTION_CONTINUE_SEARCH;
}

static void take_signals(void)
{
    InitializeCriticalSection(&section);
    SetConsoleCtrlHandler(stop, TRUE);
    AddVectoredExceptionHandler(1, on_exception);
    q3_watch_files(&noted);
}

/* What main got has lost the characters that the code page lacks. */
static q3_status take_arguments(int *argc, char ***argv, q3_error *error)
{
    int count = 0;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &count);
    char **all = wide != NULL ? calloc((size_t)count + 1, sizeof *all) : NULL;
    bool good = all != NULL;
    for (int i = 0; good && i < count; i++) {
        int size = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        all[i] = size > 0 ? malloc((size_t)size) : NULL;
        good = all[i] != NULL;
        if (good) WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, all[i], size, NULL, NULL);
    }
    LocalFree(wide);
    if (!good) return q3_no_memory(error, "arguments"); /* and the command ends */
    *argc = count;
    *argv = all;
    return Q3_OK;
}

/* ==== POSIX =================================================================================== */

#elif defined(HAS_SIGNALS)

/* What ends a program from outside. */
static const int endings[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU};

static void hold_signals(bool hold)
{
    static sigset_t before;
    static bool held;
    sigset_t set;
    if (hold == held) return;
    held = hold;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) sigaddset(&set, endings[i]);
    if (hold)
        sigprocmask(SIG_BLOCK, &set, &before);
    else
        sigprocmask(SIG_SETMASK, &before, NULL);
}

/* Ends as without this, so that whoever started the command sees which signal it was. */
static void end_by(int number)
{
    remove_temporaries();
    signal(number, SIG_DFL);
    raise(number); /* comes when the handler returns */
}

static void on_bus(int number, siginfo_t *about, void *context)
{
    (void)context;
    if (about->si_code > 0 && end_of_file(about->si_addr)) _exit(2);
    end_by(number);
}

static void take_signals(void)
{
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    sigfillset(&action.sa_mask);
    action.sa_handler = end_by;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (sigaction(endings[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(endings[i], &action, NULL);
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = on_bus;
    sigaction(SIGBUS, &action, NULL);
    /* A write that fails is an error like any other, where nobody reads, or a file is too long. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    q3_watch_files(&noted);
}

static q3_status take_arguments(int *argc, char ***argv, q3_error *error)
{
    (void)argc, (void)argv, (void)error;
    return Q3_OK;
}

/* ==== C alone ================================================================================= */

#else

static void take_signals(void)
{
}

static q3_status take_arguments(int *argc, char ***argv, q3_error *error)
{
    (void)argc, (void)argv, (void)error;
    return Q3_OK;
}

#endif

q3_status system_begin(int *argc, char ***argv, q3_error *error)
{
    q3_keep_streams();
    q3_binary(stdout);
    take_signals();
    return take_arguments(argc, argv, error);
}
