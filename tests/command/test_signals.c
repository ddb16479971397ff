/* SPDX-License-Identifier: MIT */
/* What a signal, or a file that changes while the command has it open, leaves behind: nothing but
 * a line. Run as: test_signals COMMAND GOLDEN; skipped (77) where there are no signals. */
#define _POSIX_C_SOURCE 200809L
#define FOLDER "signals.tmp/"
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of command.h */
#endif
#include "command.h"

#if defined(__unix__) || defined(__APPLE__)

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* So many tokens that the run takes half a minute, if it is let. */
enum { TOKENS = 30000 };

static char *tokens; /* "1,1,...,1" */

static void nap(void)
{
    struct timespec moment = {.tv_nsec = 10 * 1000 * 1000};
    nanosleep(&moment, NULL);
}

static bool is_there(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0;
}

/* The command in FOLDER with these arguments; `ignored`: a signal that it is started without (0:
 * none). Its outputs go to the files out and err. */
static pid_t start(const char *const *arguments, int ignored)
{
    pid_t child = fork();
    if (child != 0) return child;
    /* Shells start what runs in the background without some of them. */
    static const int all[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGXFSZ};
    for (size_t i = 0; i < COUNT(all); i++) signal(all[i], SIG_DFL);
    if (ignored != 0) signal(ignored, SIG_IGN);
    if (chdir(FOLDER) != 0 || freopen("out", "wb", stdout) == NULL ||
        freopen("err", "wb", stderr) == NULL || freopen("/dev/null", "rb", stdin) == NULL)
        _exit(99);
    char *words[32] = {(char *)(uintptr_t)command_path};
    for (size_t i = 0; arguments[i] != NULL; i++) words[i + 1] = (char *)(uintptr_t)arguments[i];
    execv(command_path, words);
    _exit(98);
}

/* What wait says of the child; 0 as if it had succeeded where it took too long, and was killed. */
static int end_of(pid_t child)
{
    int status = 0;
    for (size_t i = 0; i < 12000; i++, nap())
        if (waitpid(child, &status, WNOHANG) == child) return status;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    CHECKF(false, "the command did not end");
    return 0;
}

/* The dump has begun: its file is there. */
static void wait_for(const char *path, pid_t child)
{
    int status;
    for (size_t i = 0; i < 6000 && !is_there(path); i++, nap()) {
        if (waitpid(child, &status, WNOHANG) != child) continue;
        CHECKF(false, "%s: the command ended before it was there", path);
        exit(t_done("signals"));
    }
    CHECKF(is_there(path), "%s: it does not come", path);
}

static void holds_only(const char *path)
{
    char line[300];
    snprintf(line, sizeof line, "ls %s", path);
    shell(line);
    CHECKF(last.size == 0, "%s: got \"%s\", want nothing", path, last.out);
}

static void says(const char *want)
{
    size_t size;
    char *err = read_file(FOLDER "err", &size);
    CHECK_TEXT(err, want);
    free(err);
}

/* ==== Signals ================================================================================= */

static const char *const long_dump[] = {"dump", "tiny", "--tokens", NULL, "--taps", "model.norm*",
                                        "-o", "w/x", NULL, NULL};

static pid_t start_dump(const char *model, size_t count, const char *option, int ignored)
{
    const char *words[16];
    memcpy(words, long_dump, sizeof long_dump);
    words[1] = model;
    words[3] = tokens + 2 * (TOKENS - count);
    words[8] = option;
    words[9] = NULL;
    return start(words, ignored);
}

/* Its default is what ends the command, as a shell sees; the file goes with it. */
static void test_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU};
    for (size_t i = 0; i < COUNT(signals); i++) {
        pid_t child = start_dump("tiny", TOKENS, NULL, 0);
        wait_for(FOLDER "w/x.tmp0", child);
        kill(child, signals[i]);
        int status = end_of(child);
        CHECKF(WIFSIGNALED(status) && WTERMSIG(status) == signals[i], "signal %d: status %d",
               signals[i], status);
        says("");
        holds_only("w");
    }
}

/* Whoever starts the command without a signal, as nohup does, means it. */
static void test_ignored(void)
{
    pid_t child = start_dump("tiny", TOKENS, NULL, SIGHUP);
    int status;
    wait_for(FOLDER "w/x.tmp0", child);
    kill(child, SIGHUP);
    for (size_t i = 0; i < 20; i++) nap();
    CHECK(waitpid(child, &status, WNOHANG) == 0 && is_there(FOLDER "w/x.tmp0"));
    kill(child, SIGTERM);
    status = end_of(child);
    CHECKF(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %d", status);
    holds_only("w");
}

/* A run that may go on keeps what it has. */
static void test_resumable(void)
{
    pid_t child = start_dump("tiny", 4000, "--resume", 0);
    wait_for(FOLDER "w/x.part.state", child);
    kill(child, SIGINT);
    int status = end_of(child);
    CHECKF(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT, "status %d", status);
    CHECK(is_there(FOLDER "w/x.part") && is_there(FOLDER "w/x.part.state"));
    shell("rm w/x.part w/x.part.state");
    succeeds("");
    holds_only("w");
}

/* A limit of the system for a file's size is an error of that file. */
static void test_limit(void)
{
    shell("(ulimit -c 0; ulimit -f 32; exec \"$Q\" dump tiny -o w/x --tokens 1,2,3,4)");
    fails_with("cannot write w/x: ");
    holds_only("w");
}

/* ==== Files that change ======================================================================= */

/* What the model was is gone while it is read. */
static void test_cut(void)
{
    shell("cp -R tiny cut && chmod -R u+w cut");
    pid_t child = start_dump("cut", TOKENS, NULL, 0);
    wait_for(FOLDER "w/x.tmp0", child);
    CHECK(truncate(FOLDER "cut/model.safetensors", 5000) == 0);
    int status = end_of(child);
    CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 2, "status %d", status);
    says("qwen3moe: cannot read cut/model.safetensors: it was cut while it was in use, or its disk "
         "fails\n");
    holds_only("w");
    shell("rm -r cut");
}

/* SIGBUS that has nothing to do with a file ends the command as ever. */
static void test_other_bus(void)
{
    pid_t child = start_dump("tiny", TOKENS, NULL, 0);
    wait_for(FOLDER "w/x.tmp0", child);
    kill(child, SIGBUS);
    int status = end_of(child);
    CHECKF(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "status %d", status);
    says("");
    holds_only("w");
}

/* A file that grows, or whose name another one takes, is what it was when it was opened. */
static void test_replaced(void)
{
    static const char *const words[] = {"dump", "moved", "--tokens", NULL, "--taps",
                                        "model.layers.1.input*", "--layers", "0:2", "-o", "w/x",
                                        NULL};
    const char *line[16];
    memcpy(line, words, sizeof words);
    shell("cp -R tiny moved && chmod -R u+w moved && printf x >other");
    char *some = tokens + 2 * (TOKENS - 2000);
    line[3] = some;
    pid_t child = start(line, 0);
    wait_for(FOLDER "w/x.tmp0", child);
    shell("printf more >>moved/model.safetensors && mv other moved/model.safetensors && "
          "mv moved/model.safetensors gone");
    succeeds("");
    int status = end_of(child);
    CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
    shell("rm -r moved gone");
    line[1] = "tiny";
    line[9] = "w/y";
    status = end_of(start(line, 0));
    shell("cmp w/x w/y && rm w/x w/y");
    CHECKF(status == 0 && last.status == 0 && last.size == 0, "%s%s", last.out, last.err);
}

/* ==== Streams ================================================================================= */

static const failure refused[] = {
    {"info pipe", "cannot read pipe: it is a pipe"},
    {"info odd", "cannot read odd/config.json: it is a pipe"},
    {"score weights beginning", "cannot read weights/model.safetensors: it is a pipe"},
    {"tokenize odd beginning", "cannot read odd/tokenizer.json: it is a pipe"},
    {"tokenize odder --chat beginning", "cannot read odder/chat_template.jinja: it is a pipe"},
    {"tokenize tiny --chat /dev/zero", "cannot read /dev/zero: it is a device"},
    {"check tiny pipe", "cannot read pipe: it is a pipe"},
    {"diff pipe pipe", "cannot read pipe: it is a pipe"},
    {"report /dev/zero", "cannot read /dev/zero: it is a device"},
    {"report tiny", "cannot read tiny: it is a folder"},
    {"check tiny w", "cannot read w: it is a folder"},
};

/* What must be a file is not waited for, and read once. */
static void test_refused(void)
{
    shell("mkfifo pipe && cp -R tiny weights && rm -f weights/model.safetensors && "
          "mkfifo weights/model.safetensors && mkdir odd && "
          "mkfifo odd/config.json odd/tokenizer.json && cp -R tiny odder && "
          "rm -f odder/chat_template.jinja && mkfifo odder/chat_template.jinja");
    succeeds("");
    all_fail(refused, COUNT(refused));
    shell("rm -r pipe weights odd odder");
}

/* What is read to its end may be a pipe, and so may what is written at its end. */
static void test_streams(void)
{
    run("dump tiny --tokens 1,2,3 -o w/taps");
    run("check tiny w/taps --json w/lines");
    succeeds(NULL);
    shell("mkfifo pipe && { cat w/lines >pipe & } && \"$Q\" report pipe >w/a; wait; "
          "\"$Q\" report w/lines >w/b; cmp w/a w/b");
    succeeds("");
    shell("\"$Q\" report /dev/stdin <w/lines >w/a; cat w/lines | \"$Q\" report - >w/b; "
          "cmp w/a w/b");
    succeeds("");
    /* The lines say where they went: without that they are the same. */
    write_text(FOLDER "plain.sh", "sed 's/--json [^ \"]*//' $1 >$1.plain");
    shell("{ cat pipe >w/a & } && \"$Q\" check tiny w/taps --json pipe >w/b; wait; test -p pipe && "
          "sh plain.sh w/a && sh plain.sh w/lines && cmp w/a.plain w/lines.plain");
    succeeds("");
    shell("ln -s /dev/stdout w/out; \"$Q\" dump tiny --tokens 1,2,3 -o w/out | cmp - w/taps");
    CHECKF(last.size == 0 && strncmp(last.err, "standard output: ", 17) == 0, "%s%s", last.out,
           last.err);
    shell("\"$Q\" dump tiny --tokens 1,2,3 -o w/out --resume | cat");
    CHECK_TEXT(last.err, "qwen3moe: --resume: found -o w/out, expected a file\n");
    shell("echo before >w/a; \"$Q\" check tiny w/taps --json /dev/fd/3 3>>w/a >w/b; "
          "sh plain.sh w/a && { echo before; cat w/lines.plain; } | cmp - w/a.plain");
    succeeds("");
    /* Behind what was printed. */
    shell("\"$Q\" check tiny w/taps --json /dev/fd/3 3>&1 | tail -n 1 | cut -c1-8");
    succeeds("{\"tap\":\"\n");
    shell("rm pipe plain.sh w/*");
}

/* A device stays what it is; by a link, so that a mistake replaces that alone. */
static void test_device(void)
{
    shell("ln -s /dev/null nothing && \"$Q\" dump tiny --tokens 1,2 -o nothing && "
          "test -c nothing && test -L nothing");
    CHECKF(last.status == 0, "%s", last.err);
    holds_only("w");
    shell("rm nothing");
}

/* ==== Permissions and links =================================================================== */

static void test_mode(void)
{
    shell("umask 022; : >w/x && chmod 640 w/x && \"$Q\" dump tiny --tokens 1 -o w/x && "
          "ls -l w/x | cut -c1-10");
    CHECKF(strstr(last.out, "\n-rw-r-----\n") != NULL, "got \"%s\"", last.out);
    shell("umask 022; chmod 444 w/x && \"$Q\" dump tiny --tokens 1 -o w/x --resume && "
          "ls -l w/x | cut -c1-10");
    CHECKF(strstr(last.out, "\n-r--r--r--\n") != NULL, "got \"%s\"", last.out);
    shell("umask 027; rm -f w/x; \"$Q\" dump tiny --tokens 1 -o w/x && ls -l w/x | cut -c1-10");
    CHECKF(strstr(last.out, "\n-rw-r-----\n") != NULL, "got \"%s\"", last.out);
    shell("rm -f w/x");
}

/* The link stays, and what it leads to is replaced or made: with --resume too. */
static void test_links(void)
{
    shell("mkdir w/far && ln -s far/a w/link && ln -s link w/link2 && ln -s ring w/ring");
    run("dump tiny --tokens 1,2 -o w/link2");
    succeeds(NULL);
    shell("test -L w/link && test -L w/link2 && cp w/far/a first && ls w/far");
    CHECKF(last.status == 0 && strcmp(last.out, "a\n") == 0, "got \"%s\"", last.out);
    run("dump tiny --tokens 1,2 -o w/link --resume");
    succeeds(NULL);
    shell("cmp first w/far/a && test -L w/link && ls w w/far");
    CHECK_TEXT(last.out, "w:\nfar\nlink\nlink2\nring\n\nw/far:\na\n");
    shell("(ulimit -f 220; exec \"$Q\" dump tiny --tokens 1,2,3,4,5 -o w/link --resume)");
    fails_with("cannot write w/link: ");
    shell("ls w/far; rm w/far/*.part*");
    succeeds("a\na.part\na.part.state\n");
    run("dump tiny --tokens 1,2 -o w/ring");
    fails_with("cannot write w/ring: ");
    shell("rm -r w/* first");
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    tokens = malloc(2 * TOKENS + 1);
    if (tokens == NULL) return 1;
    for (size_t i = 0; i < TOKENS; i++) memcpy(tokens + 2 * i, "1,", 2);
    tokens[2 * TOKENS - 1] = 0;
    test_refused();
    test_streams();
    test_device();
    test_mode();
    test_links();
    test_limit();
    test_signals();
    test_ignored();
    test_resumable();
    test_cut();
    test_other_bus();
    test_replaced();
    free(tokens);
    return t_done("signals");
}

#else

int main(void)
{
    printf("signals: not run, as this system has none of POSIX\n");
    return 77;
}

#endif
