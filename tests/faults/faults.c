/* SPDX-License-Identifier: MIT */
/* faults.c - each verb of the command, and programs that use the library, with each call of libc
 * that can fail failing in turn.
 *
 *     test_faults GOLDEN [--few] [--small] [--planted] [CASE]...
 *
 * --few      the first call of each place alone
 * --small    the small cases alone
 * --planted  programs with a planted fault each, which must be found
 *
 * What holds of each run with a fault (see `problem_of`): it ends with status 2 and one line on
 * standard error, or with the status and all the output of the run without a fault; it gives back
 * all it took; it leaves no file that is not complete; it writes nowhere else; it ends. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "faults/cases.h"
#include "faults/folders.h"
#include "faults/inject.h"

#include <ctype.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#define LONGEST_RUN 120u /* seconds */

/* So that a report is no exit status of the command, and leaks are found by count alone. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    /* The last two: a fork costs half. */
    return "exitcode=99:detect_leaks=0:strict_string_checks=1:allocator_may_return_null=1:"
           "detect_stack_use_after_return=0:quarantine_size_mb=1";
}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
    return "exitcode=99:print_stacktrace=1";
}

/* Where it all happens: inputs in ROOT/in, the run in ROOT/run/w, a run with a fault in
 * ROOT/fault/w, with what they print beside w. */
static char root[512];

/* What the processes tell each other. */
static struct shared {
    inject_left left;
    size_t faults[INJECT_KINDS], problems;
    size_t told; /* of this case */
    char last[400];
} *shared;

/* The case at hand, and the run without a fault. */
static const fault_case *at_hand;
static snapshot before, after;
static folder_file out, messages;
static int status_without;
static int console;
static bool few; /* of the faults */

static char *under(const char *folder, const char *name)
{
    static char paths[8][PATH_ROOM];
    static size_t turn;
    turn = (turn + 1) % 8;
    snprintf(paths[turn], sizeof paths[turn], "%s/%s%s%s", root, folder, *name ? "/" : "", name);
    return paths[turn];
}

/* ==== One run ================================================================================= */

/* The arguments: words between blanks, in which $I is the folder of inputs. */
static int split(const char *text, char **words)
{
    int count = 0;
    words[count++] = strdup("qwen3moe");
    while (*text != 0) {
        char word[PATH_ROOM];
        size_t length = strcspn(text, " ");
        bool inside = strncmp(text, "$I", 2) == 0;
        snprintf(word, sizeof word, "%s%.*s", inside ? under("in", "") : "",
                 (int)(length - (inside ? 2 : 0)), text + (inside ? 2 : 0));
        words[count++] = strdup(word);
        text += length + (text[length] == ' ');
    }
    words[count] = NULL;
    return count;
}

static void redirect(const char *path, int flags, int number)
{
    int file = open(path, flags, 0666);
    if (file < 0 || dup2(file, number) < 0) give_up(path);
    close(file);
}

/* In a process of its own. */
static void run_case(const inject_hooks *hooks)
{
    inject_extent extent = few ? INJECT_FEW : at_hand->extent;
    char *words[32];
    int count = split(at_hand->arguments, words);
    if (chdir(under("run", "w")) != 0) give_up("run/w");
    redirect("../stdin", O_RDONLY, 0);
    redirect("../out", O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 1);
    redirect("../err", O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 2);
    alarm(hooks != NULL ? 0 : LONGEST_RUN);
    if (hooks != NULL)
        inject_start(extent, hooks);
    else
        inject_count();
    int status = at_hand->main(count, words);
    inject_stop();
    fflush(NULL);
    inject_report(&shared->left);
    shared->left.returned = true;
    _exit(status);
}

/* The folder of the run as it is before the run. */
static void prepare(void)
{
    char from[PATH_ROOM];
    empty_folder(under("run", "w"));
    for (size_t i = 0; i < sizeof at_hand->before / sizeof *at_hand->before; i++) {
        if (at_hand->before[i].from == NULL) continue;
        snprintf(from, sizeof from, "%s", under("in", at_hand->before[i].from));
        copy_bytes(from, under("run/w", at_hand->before[i].to));
    }
    if (at_hand->input != NULL)
        copy_bytes(under("in", at_hand->input), under("run", "stdin"));
    else
        write_bytes(under("run", "stdin"), "", 0);
}

static int run_apart(const inject_hooks *hooks)
{
    int status = 0;
    shared->left = (inject_left){.returned = false};
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) run_case(hooks);
    if (child < 0 || waitpid(child, &status, 0) != child) give_up("fork");
    return status;
}

/* ==== What a run with a fault did ============================================================= */

/* Equal but for numbers: times. */
static bool same_but_numbers(const char *a, const char *b)
{
    while (*a != 0 && *b != 0) {
        if (*a == '-') a++; /* a child's clock begins again */
        if (*b == '-') b++;
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            a += strspn(a, "0123456789");
            b += strspn(b, "0123456789");
        } else if (*a++ != *b++) {
            return false;
        }
    }
    return *a == *b;
}

/* How much of it was said before the call that failed: the lines of the run without a fault. */
static size_t length_said(const char *text)
{
    char begin[400];
    size_t length = 0;
    for (const char *p = messages.bytes; (p = strchr(p, '\n')) != NULL; p++) {
        if (strchr(text + length, '\n') == NULL) return 0;
        length += strcspn(text + length, "\n") + 1;
    }
    if (length >= sizeof begin) return 0;
    memcpy(begin, text, length);
    begin[length] = 0;
    return same_but_numbers(begin, messages.bytes) ? length : 0;
}

/* One line "qwen3moe: ...", in which nothing moves the cursor. */
static bool is_one_line(const folder_file *text)
{
    const unsigned char *bytes = (const unsigned char *)text->bytes;
    size_t said = status_without != 2 ? length_said(text->bytes) : 0;
    if (text->size < said + 12 || strncmp(text->bytes + said, "qwen3moe: ", 10) != 0) return false;
    for (size_t i = said; i < text->size; i++) {
        bool control = bytes[i] < 0x20 || bytes[i] == 0x7F ||
                       (bytes[i] == 0xC2 && bytes[i + 1] < 0xA0);
        if (control != (i + 1 == text->size) || (control && bytes[i] != '\n')) return false;
    }
    return true;
}

static const char *problem_of_files(const inject_fault *fault, bool complete)
{
    const char *problem = NULL;
    snapshot now = {.count = 0};
    snapshot_take(&now, under("fault", "w"));
    for (size_t i = 0; i < now.count && problem == NULL; i++) {
        const folder_file *file = &now.files[i];
        const folder_file *was = snapshot_find(&before, file->name);
        const folder_file *becomes = snapshot_find(&after, file->name);
        bool may_stay = (at_hand->unfinished != NULL &&
                         strncmp(file->name, at_hand->unfinished, strlen(at_hand->unfinished)) == 0)
                        || (fault->kind == INJECT_REMOVE && becomes == NULL);
        if (may_stay && !complete) continue;
        if (may_stay && fault->kind == INJECT_REMOVE) continue;
        if (was == NULL && becomes == NULL) problem = "a file is left that nobody asked for";
        else if (complete && !same_file(file, becomes)) problem = "an output is not the right one";
        else if (!same_file(file, was) && !same_file(file, becomes))
            problem = "an output is neither what it was nor complete";
    }
    for (size_t i = 0; i < before.count && problem == NULL; i++)
        if (snapshot_find(&now, before.files[i].name) == NULL &&
            snapshot_find(&after, before.files[i].name) != NULL)
            problem = "a file that was there is lost";
    for (size_t i = 0; complete && i < after.count && problem == NULL; i++)
        if (snapshot_find(&now, after.files[i].name) == NULL)
            problem = "it succeeds without an output";
    snapshot_free(&now);
    return problem;
}

static const char *problem_of_texts(const inject_fault *fault, int status, const folder_file *said,
                                    const folder_file *line)
{
    if (status == 2 && status_without != 2) {
        if (!fault->on_messages && !is_one_line(line)) return "not one line on standard error";
        if (!fault->on_output &&
            (said->size > out.size || memcmp(said->bytes, out.bytes, said->size) != 0))
            return "standard output is not the beginning of the right one";
        return NULL;
    }
    if (status != status_without) return "another exit status";
    if (status == 2 && !fault->on_messages)
        return is_one_line(line) ? NULL : "not one line on standard error";
    if (!same_file(said, &out)) return "it succeeds, but standard output is another";
    if (!fault->on_messages && !same_but_numbers(line->bytes, messages.bytes))
        return "it succeeds, but standard error is another";
    return NULL;
}

static const char *problem_of(const inject_fault *fault, int status, const folder_file *said,
                              const folder_file *line)
{
    const inject_left *left = &shared->left;
    if (WIFSIGNALED(status))
        return WTERMSIG(status) == SIGALRM ? "it does not end" : "it ends by a signal";
    status = WEXITSTATUS(status);
    if (status == SANITIZER_STATUS) return "a sanitizer's report";
    if (!left->returned) return "it does not return from main";
    const char *problem = problem_of_texts(fault, status, said, line);
    if (problem == NULL) problem = problem_of_files(fault, status != 2);
    if (problem != NULL) return problem;
    if (left->outside[0] != 0) return "it writes where it reads";
    if (left->blocks != 0) return "memory is not given back";
    if (left->files != 0) return "a file is not closed";
    if (left->mappings != 0) return "a mapping is not given back";
    return NULL;
}

/* In the run, at the call that failed in the child: so its place can be shown. */
static void tell(const inject_fault *fault, const char *problem, int status,
                 const folder_file *line)
{
    static const char *const modes[INJECT_MODES] = {"once", "from here on", "half of it"};
    int own = dup(2);
    snprintf(shared->last, sizeof shared->last, "%s", problem);
    shared->problems++;
    if (++shared->told > 4 || at_hand->planted != NULL) {
        close(own);
        return;
    }
    dup2(console, 2);
    fprintf(stderr, "%s: %s: fault: %s, %s, call %zu of its place, errno %d; wait status 0x%x; said"
            " \"%.*s\"\n", at_hand->name, problem, inject_kind_names[fault->kind],
            modes[fault->mode], fault->call, fault->error, (unsigned)status,
            (int)(line->size < 6000 ? line->size : 6000), line->bytes);
    inject_trace();
    dup2(own, 2);
    close(own);
}

static void child_enters(void)
{
    alarm(at_hand->planted == NULL ? LONGEST_RUN : 1);
    shared->left = (inject_left){.returned = false};
    empty_folder(under("fault", "w"));
    copy_folder(under("run", "w"), under("fault", "w"));
    copy_bytes(under("run", "out"), under("fault", "out"));
    copy_bytes(under("run", "err"), under("fault", "err"));
    copy_bytes(under("run", "stdin"), under("fault", "stdin"));
    if (chdir(under("fault", "w")) != 0) give_up("fault/w");
    inject_reopen();
}

static void child_ended(const inject_fault *fault, int status)
{
    folder_file said, line;
    said.bytes = read_bytes(under("fault", "out"), &said.size);
    line.bytes = read_bytes(under("fault", "err"), &line.size);
    const char *problem = problem_of(fault, status, &said, &line);
    shared->faults[fault->kind]++;
    if (problem != NULL) tell(fault, problem, status, &line);
    free(said.bytes);
    free(line.bytes);
}

/* ==== A case ================================================================================== */

static uint64_t hash_inputs;

static void hash_one(const char *path, const char *name, void *user)
{
    struct stat about;
    (void)user;
    for (const char *p = name; *p != 0; p++)
        hash_inputs = (hash_inputs ^ (unsigned char)*p) * UINT64_C(0x100000001B3);
    if (stat(path, &about) != 0) give_up(path);
    if (S_ISDIR(about.st_mode)) {
        each_file(path, hash_one, NULL);
        return;
    }
    size_t size;
    char *bytes = read_bytes(path, &size);
    for (size_t i = 0; i < size; i++)
        hash_inputs = (hash_inputs ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001B3);
    free(bytes);
}

static uint64_t inputs(void)
{
    hash_inputs = UINT64_C(0xCBF29CE484222325);
    each_file(under("in", ""), hash_one, NULL);
    return hash_inputs;
}

static void fail_case(const char *text)
{
    shared->problems++;
    snprintf(shared->last, sizeof shared->last, "%s", text);
    if (at_hand->planted == NULL) fprintf(stderr, "%s: %s\n", at_hand->name, text);
}

static size_t all_faults(void)
{
    size_t count = 0;
    for (size_t i = 0; i < INJECT_KINDS; i++) count += shared->faults[i];
    return count;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Without a fault, then with each. */
static void do_case(const fault_case *c, size_t *all_sites)
{
    static const inject_hooks hooks = {child_enters, child_ended};
    size_t sites, calls, faults_before = all_faults();
    double begin = seconds();
    at_hand = c;
    shared->told = 0;
    uint64_t inputs_before = inputs();
    prepare();
    inject_forget();
    snapshot_take(&before, under("run", "w"));
    int status = run_apart(NULL);
    status_without = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    inject_left left = shared->left;
    inject_totals(&sites, &calls);
    *all_sites += sites;
    out.bytes = read_bytes(under("run", "out"), &out.size);
    messages.bytes = read_bytes(under("run", "err"), &messages.size);
    snapshot_take(&after, under("run", "w"));
    if (status_without != c->status) {
        fail_case("another exit status without a fault");
        fprintf(stderr, "%s", messages.bytes);
    }
    if (left.blocks != 0 || left.files != 0 || left.mappings != 0)
        fail_case("something is not given back without a fault");
    prepare();
    if (status_without == c->status && run_apart(&hooks) != status)
        fail_case("the run that forks ends otherwise");
    if (inputs() != inputs_before) fail_case("an input has changed");
    printf("%-28s %5zu sites %7zu calls %6zu faults %6.1f s\n", c->name, sites, calls,
           all_faults() - faults_before, seconds() - begin);
    fflush(stdout);
    free(out.bytes);
    free(messages.bytes);
    snapshot_free(&before);
    snapshot_free(&after);
}

static bool is_chosen(const fault_case *c, char **names, int count, bool small)
{
    if (small && !c->small) return false;
    for (int i = 0; i < count; i++)
        if (strcmp(c->name, names[i]) == 0) return true;
    return count == 0;
}

/* Runs the shell in the folder of the inputs, where $G is golden/. */
static void shell(const char *golden, const char *line)
{
    char whole[4096];
    snprintf(whole, sizeof whole, "cd '%s' && G='%s' && %s", under("in", ""), golden, line);
    if (system(whole) != 0) give_up(line);
}

/* Runs the command, to make an input; up to that call of fsync, if there is one. */
static void make(const char *arguments, int want, size_t sync)
{
    char *words[32];
    int status, count = split(arguments, words);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (chdir(under("in", "")) != 0) give_up("in");
        redirect("/dev/null", O_WRONLY, 1);
        inject_end_at_sync(sync);
        int result = command_main(count, words);
        fflush(NULL);
        _exit(result);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) ||
        WEXITSTATUS(status) != want) {
        fprintf(stderr, "%s: cannot be made\n", arguments);
        exit(1);
    }
}

static void set_up(const char *golden)
{
    char here[400], line[2400];
    if (getcwd(here, sizeof here) == NULL) give_up("getcwd");
    snprintf(root, sizeof root, "%s/faults.tmp", here);
    snprintf(line, sizeof line, "rm -rf '%s' && mkdir -p '%s/in' '%s/run/w' '%s/fault/w'", root,
             root, root, root);
    if (system(line) != 0) give_up(line);
    for (size_t i = 0; i < shell_line_count; i++) shell(golden, shell_lines[i]);
    shard(under("in", "tiny/model.safetensors"), under("in", "sharded"));
    for (size_t i = 0; i < made_count; i++) make(made[i].arguments, made[i].status, made[i].sync);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    console = dup(2);
    if (shared == MAP_FAILED || console < 0) give_up("set_up");
}

/* Each program with a planted fault is found, for what it is. */
static int do_planted(void)
{
    size_t sites = 0, missed = 0;
    for (size_t i = 0; i < planted_count; i++) {
        shared->problems = 0;
        shared->last[0] = 0;
        do_case(&planted[i], &sites);
        bool found = shared->problems > 0 && strstr(shared->last, planted[i].planted) != NULL;
        missed += !found;
        printf("  planted: %s: %s\n", planted[i].planted, found ? "found" : "NOT FOUND");
        if (!found) printf("  instead: %s\n", shared->problems > 0 ? shared->last : "nothing");
    }
    printf("faults: %zu planted, %zu not found\n", planted_count, missed);
    return missed != 0;
}

int main(int argc, char **argv)
{
    bool plant = false, small = false;
    size_t sites = 0, done = 0;
    int at = 2;
    if (argc < 2) return 2;
    for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
        few = few || strcmp(argv[at], "--few") == 0;
        small = small || strcmp(argv[at], "--small") == 0;
        plant = plant || strcmp(argv[at], "--planted") == 0;
    }
    set_up(argv[1]);
    if (plant) return do_planted();
    double begin = seconds();
    for (size_t i = 0; i < case_count; i++) {
        if (!is_chosen(&cases[i], argv + at, argc - at, small)) continue;
        do_case(&cases[i], &sites);
        done++;
    }
    for (size_t i = 0; i < INJECT_KINDS; i++)
        printf("%s%s %zu", i == 0 ? "" : ", ", inject_kind_names[i], shared->faults[i]);
    printf("\nfaults: %zu injected in %zu runs, at %zu sites, %.0f s: %zu problems\n", all_faults(),
           done, sites, seconds() - begin, shared->problems);
    return shared->problems != 0 || done == 0;
}
