/* SPDX-License-Identifier: MIT */
/* The core on a board without an operating system: qwen3moe.c alone (host/taps.c names the
 * taps), the weights of the small model in flash. Prints the lines of tests/platforms/core.h and
 * their hash. */
#include "../platforms/core.h"
#include "model_data.h" /* written by make_model.c */
#include "start.h"

static uint8_t memory[512 << 10] __attribute__((aligned(64)));
static core_model model;
static int bad;

static void line(void *user, const char *text)
{
    (void)user;
    host_write(text);
}

static void complain(void *user, const char *name, const char *what, uint32_t found)
{
    char hex[10];
    (void)user;
    for (unsigned i = 0; i < 8; i++) hex[i] = "0123456789abcdef"[found >> (28 - 4 * i) & 15];
    hex[8] = '\n';
    hex[9] = '\0';
    host_write(name);
    host_write(": ");
    host_write(what);
    host_write(": ");
    host_write(hex);
    bad = 1;
}

int main(void)
{
    core c = {line, NULL, complain, memory, sizeof memory, 0, {{0}, 0, {0}}};
    char hash[65];
    sha256_init(&c.lines);
    core_model_make(&model, model_data, NULL);
    if (model.used != sizeof model_data)
        complain(NULL, "model", "bytes used", (uint32_t)model.used);
    core_all(&c, &model, 4);
    sha256_text(&c.lines, hash);
    host_write("core ");
    host_write(hash);
    host_write("\n");
    return bad;
}
