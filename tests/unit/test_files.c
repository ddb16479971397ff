/* SPDX-License-Identifier: MIT */
/* host/files.h: what is mapped, what is read whole, where outputs come to stand, and who is told.
 * What a run of the command shows better (permissions, links, signals) is in
 * command/test_signals.c. */
#define _POSIX_C_SOURCE 200809L
#include "host/files.h"
#include "host/system.h"

#include "folder.h"
#include "t.h"

#include <errno.h>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#define HAS_POSIX 1
#endif

static q3_error error;

/* The file's bytes are these. */
static void holds(const char *name, const char *text)
{
    uint8_t *bytes = NULL;
    size_t length = 0;
    CHECKF(q3_read_whole(&bytes, &length, folder_path(name), &error) == Q3_OK, "%s", error.text);
    CHECKF(bytes != NULL && length == strlen(text) && strcmp((char *)bytes, text) == 0,
           "%s: got \"%s\", want \"%s\"", name, bytes != NULL ? (char *)bytes : "nothing", text);
    free(bytes);
}

/* ==== Who is told ============================================================================= */

static char told[512];

static void note(const char *what, const char *path)
{
    const char *name = strrchr(path, '/');
    size_t at = strlen(told);
    snprintf(told + at, sizeof told - at, "%s %s;", what, name != NULL ? name + 1 : path);
}

static void note_mapped(const uint8_t *data, size_t size, const char *path)
{
    note(data != NULL && size == 4 ? "mapped" : "wrong", path);
}

static void note_unmapped(const uint8_t *data)
{
    note(data != NULL ? "unmapped" : "wrong", "");
}

static void note_temporary(q3_temporary state, const char *path)
{
    FILE *file = fopen(path, "rb");
    bool there = file != NULL;
    if (there) fclose(file);
    note(state == Q3_TEMPORARY_BEGINS ? "begins" : state == Q3_TEMPORARY_GONE ? "gone" :
         there ? "there" : "wrong", path);
}

static void check_told(const char *want)
{
    CHECK_TEXT(told, want);
    told[0] = 0;
}

static const q3_watch watch = {note_mapped, note_unmapped, note_temporary};

static void test_told(void)
{
    q3_output *output = NULL;
    q3_mapping mapping = {0};
    folder_write("taken.tmp0", "old", 3);
    folder_expect("taken");
    q3_watch_files(&watch);
    CHECK(q3_output_open(&output, folder_path("taken"), &error) == Q3_OK);
    check_told("begins taken.tmp0;gone taken.tmp0;begins taken.tmp1;there taken.tmp1;");
    CHECK(q3_output_put(output, 0, (const uint8_t *)"four", 4, &error) == Q3_OK);
    CHECK(q3_output_commit(output, &error) == Q3_OK);
    check_told("gone taken.tmp1;");
    CHECK(q3_output_open(&output, folder_path("other"), &error) == Q3_OK);
    check_told("begins other.tmp0;there other.tmp0;");
    q3_output_abandon(output);
    check_told("gone other.tmp0;");
    CHECK(q3_output_open(&output, folder_path("none/x"), &error) == Q3_ERROR_FILE);
    check_told("begins x.tmp0;gone x.tmp0;");
    folder_expect("kept.part");
    CHECK(q3_output_go_on(&output, folder_path("kept"), false, &error) == Q3_OK);
    q3_output_abandon(output);
    check_told("");
    CHECK(q3_map(&mapping, folder_path("taken"), &error) == Q3_OK);
    if (mapping.mapped) check_told("mapped taken;");
    bool mapped = mapping.mapped;
    q3_unmap(&mapping);
    check_told(mapped ? "unmapped ;" : "");
    folder_write("empty", "", 0); /* in memory */
    CHECK(q3_map(&mapping, folder_path("empty"), &error) == Q3_OK);
    CHECK(mapping.size == 0 && mapping.data != NULL && !mapping.mapped);
    q3_unmap(&mapping);
    check_told("");
    q3_watch_files(NULL);
    CHECK(q3_map(&mapping, folder_path("taken"), &error) == Q3_OK);
    q3_unmap(&mapping);
    check_told("");
    holds("taken", "four");
    holds("taken.tmp0", "old");
}

/* ==== What is no file ========================================================================= */

static void refused(const char *path, const char *want)
{
    q3_mapping mapping = {0};
    CHECKF(q3_map(&mapping, path, &error) == Q3_ERROR_FILE, "%s", path);
    CHECKF(strstr(error.text, want) != NULL, "got \"%s\", want \"%s\"", error.text, want);
    CHECK(mapping.data == NULL);
}

static void test_refused(void)
{
    refused(folder_path("nothing"), "nothing: no such file");
    refused(folder.path, ": it is a folder");
    CHECK(q3_is_folder(folder.path) && !q3_is_folder(folder_path("taken")));
    CHECK(q3_exists(folder.path) && q3_exists(folder_path("taken")));
    CHECK(!q3_exists(folder_path("nothing")) && !q3_exists(folder_path("taken/nothing")));
#if defined(HAS_POSIX)
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    uint8_t *bytes = NULL;
    size_t length;
    folder_expect("pipe");
    CHECK(mkfifo(folder_path("pipe"), 0600) == 0);
    alarm(60); /* who waits for a pipe is ended */
    refused(folder_path("pipe"), "pipe: it is a pipe");
    CHECK(q3_exists(folder_path("pipe")) && !q3_is_earlier(folder_path("pipe"), "x"));
    alarm(0);
    refused("/dev/zero", "cannot read /dev/zero: it is a device");
    CHECK(q3_read_whole(&bytes, &length, "/dev/zero", &error) == Q3_ERROR_FILE);
    CHECK_TEXT(error.text, "cannot read /dev/zero: it is a device");
    CHECK(q3_read_whole(&bytes, &length, folder.path, &error) == Q3_ERROR_FILE);
    CHECKF(strstr(error.text, ": it is a folder") != NULL, "%s", error.text);
    folder_expect("socket");
    snprintf(name.sun_path, sizeof name.sun_path, "%s", folder_path("socket"));
    int number = socket(AF_UNIX, SOCK_STREAM, 0);
    if (number >= 0 && bind(number, (struct sockaddr *)&name, sizeof name) == 0)
        refused(folder_path("socket"), "socket: it is a socket");
    else
        printf("no sockets here: one as a file was not tested\n");
    if (number >= 0) close(number);
#endif
}

/* ==== Where outputs come to stand ============================================================= */

static void write_output(const char *path, const char *text)
{
    q3_output *output = NULL;
    CHECKF(q3_output_open(&output, path, &error) == Q3_OK, "%s", error.text);
    if (output == NULL) return;
    CHECK(q3_output_put(output, 0, (const uint8_t *)text, strlen(text), &error) == Q3_OK);
    CHECKF(q3_output_commit(output, &error) == Q3_OK, "%s", error.text);
}

#if defined(HAS_POSIX)

static void check_mode(const char *name, unsigned want)
{
    struct stat about;
    CHECK(stat(folder_path(name), &about) == 0);
    CHECKF((about.st_mode & 07777) == want, "%s: got %o, want %o", name,
           (unsigned)about.st_mode & 07777, want);
}

/* New files as the system has them, others as they were; nobody may read the one that is being
 * written who may not read the one that it replaces. */
static void test_mode(void)
{
    static const unsigned modes[] = {0600, 0640, 0444, 0755, 0666, 04755};
    q3_output *output = NULL;
    mode_t before = umask(027);
    remove(folder_path("new"));
    folder_expect("new");
    write_output(folder_path("new"), "1");
    check_mode("new", 0640);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        CHECK(chmod(folder_path("new"), modes[i]) == 0);
        CHECK(q3_output_open(&output, folder_path("new"), &error) == Q3_OK);
        check_mode("new.tmp0", (modes[i] & 0777) | 0600);
        CHECK(q3_output_commit(output, &error) == Q3_OK);
        check_mode("new", modes[i] & 0777);
    }
    umask(before);
}

/* Links lead on, from the folder that they stand in, and one of nothing makes what it names. */
static void test_links(void)
{
    char *target;
    struct stat about;
    static const char *const names[] = {"chain", "link", "dangling", "made", "loop"};
    for (size_t i = 0; i < 5; i++) {
        remove(folder_path(names[i]));
        folder_expect(names[i]);
    }
    CHECK(symlink("link", folder_path("chain")) == 0 && symlink("taken", folder_path("link")) == 0);
    CHECK(symlink("made", folder_path("dangling")) == 0 &&
          symlink("loop", folder_path("loop")) == 0);
    write_output(folder_path("chain"), "linked");
    holds("taken", "linked");
    write_output(folder_path("dangling"), "made");
    holds("made", "made");
    for (size_t i = 0; i < 3; i++)
        CHECK(lstat(folder_path(names[i]), &about) == 0 && S_ISLNK(about.st_mode));
    target = q3_resolve(folder_path("chain"));
    CHECK(target != NULL && strcmp(target, folder_path("taken")) == 0);
    free(target);
    q3_output *output = NULL;
    CHECK(q3_output_open(&output, folder_path("loop"), &error) == Q3_ERROR_FILE);
    CHECKF(strstr(error.text, "cannot write ") != NULL, "%s", error.text);
    CHECK(q3_output_open(&output, folder_path("link"), &error) == Q3_OK);
    CHECK(q3_output_is(output, folder_path("taken")) && q3_output_is(output, folder_path("chain")));
    CHECK(!q3_output_is(output, folder_path("made")) && !q3_output_is(output, "-"));
    q3_output_abandon(output);
}

/* What is no file is written, at the end and once, whatever comes first. */
static void test_stream(void)
{
    char got[16] = "";
    q3_output *output = NULL;
    int reader = open(folder_path("pipe"), O_RDONLY | O_NONBLOCK);
    CHECK(reader >= 0 && q3_output_open(&output, folder_path("pipe"), &error) == Q3_OK);
    CHECK(q3_output_put(output, 2, (const uint8_t *)"cd", 2, &error) == Q3_OK &&
          q3_output_put(output, 0, (const uint8_t *)"ab", 2, &error) == Q3_OK);
    CHECK(read(reader, got, sizeof got) <= 0);
    CHECK(q3_output_is(output, folder_path("pipe")) && !q3_output_is(output, folder_path("taken")));
    CHECK(q3_output_commit(output, &error) == Q3_OK);
    CHECK(read(reader, got, sizeof got) == 4 && memcmp(got, "abcd", 4) == 0);
    CHECK(q3_output_open(&output, folder_path("pipe"), &error) == Q3_OK);
    q3_output_abandon(output); /* which writes nothing */
    CHECK(read(reader, got, sizeof got) == 0);
    CHECK(q3_output_go_on(&output, folder_path("pipe"), false, &error) == Q3_ERROR_FILE);
    CHECKF(strstr(error.text, "pipe: it is a device or a pipe") != NULL, "%s", error.text);
    close(reader);
    CHECK(q3_is_standard("-") && q3_is_standard("/dev/stdout") && q3_is_standard("/dev/fd/1"));
    CHECK(!q3_is_standard("/dev/stderr") && !q3_is_standard("/dev/fd/") &&
          !q3_is_standard("/dev/fd/1x") && !q3_is_standard(folder_path("taken")));
}

#endif

/* ==== Why not ================================================================================= */

static void test_reasons(void)
{
    static const struct { int number; const char *verb, *want; } cases[] = {
        {0, "read", "cannot read a/b: the system gives no reason"},
        {ENOENT, "read", "cannot read a/b: no such file"},
        {ENOENT, "create", "cannot create a/b: no such folder"},
        {EACCES, "read", "cannot read a/b: permission denied"},
        {ENOTDIR, "read", "cannot read a/b: a part of the path is a file, not a folder"},
        {EISDIR, "write", "cannot write a/b: it is a folder"},
        {ENOSPC, "write", "cannot write a/b: no space left"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        errno = cases[i].number;
        CHECK(q3_fail_file(&error, cases[i].verb, "a/b") == Q3_ERROR_FILE);
        CHECK_TEXT(error.text, cases[i].want);
    }
}

int main(void)
{
    folder_make("files.tmp");
    test_told();
    test_refused();
    write_output(folder_path("taken"), "again");
    holds("taken", "again");
    CHECK(q3_remove(folder_path("taken.tmp0")) && !q3_remove(folder_path("taken.tmp0")));
#if defined(HAS_POSIX)
    test_mode();
    test_links();
    test_stream();
#else
    printf("this system has none of POSIX: pipes, permissions and links were not tested\n");
#endif
    folder_remove();
    test_reasons();
    return t_done("files");
}
