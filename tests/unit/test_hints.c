/* SPDX-License-Identifier: MIT */
/* Hints about weights change no byte, stay inside their mapping (each is checked there), and give
 * back the room of what is done with, where the system says how much that is. */
#include "folder.h"
#include "host/hints.h"
#include "t.h"

enum { SIZE = 8 << 20 };

static uint8_t byte_at(size_t i)
{
    return (uint8_t)(i * 7 + (i >> 12));
}

static void fill(uint8_t *bytes)
{
    for (size_t i = 0; i < SIZE; i++) bytes[i] = byte_at(i);
}

static bool is_filled(const uint8_t *bytes)
{
    for (size_t i = 0; i < SIZE; i++)
        if (bytes[i] != byte_at(i)) return false;
    return true;
}

/* Kilobytes of files that lie in this program's memory; 0: the system does not say. */
static long resident(void)
{
    char line[256];
    long size = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "RssFile:", 8) == 0) size = strtol(line + 8, NULL, 10);
    if (file != NULL) fclose(file);
    return size;
}

/* A file, and memory of the same bytes, which no hint may touch. */
static void check_mapping(uint8_t *bytes)
{
    q3_mapping file = {0}, memory = {.data = bytes, .size = SIZE, .base = bytes};
    q3_error error;
    folder_write("weights", (const char *)bytes, SIZE);
    if (q3_map(&file, folder_path("weights"), &error) != Q3_OK) {
        CHECKF(false, "%s", error.text);
        return;
    }
    const q3_mapping *both[] = {&memory, &file};
    for (size_t i = 0; i < 2; i++) {
        const q3_mapping *m = both[i];
        for (size_t size = 0; size < 20000; size = size * 3 + 1) {
            q3_will_need(m, m->data + 5, size);
            q3_done_with(m, m->data + 4097, size);
            q3_done_with(m, m->data + SIZE - size, size);
        }
        CHECK(is_filled(m->data));
        q3_will_need(m, m->data, SIZE);
    }
    long before = resident();
    q3_done_with(&file, file.data, SIZE);
    q3_done_with(&memory, memory.data, SIZE);
    long after = resident();
    if (file.mapped && before >= SIZE >> 10)
        CHECKF(before - after >= SIZE >> 11, "found %ld kB of files, then %ld", before, after);
    CHECK(is_filled(file.data) && is_filled(memory.data));
    q3_unmap(&file);
}

/* Three layers from layer 4 on: two matrices and one tensor of 3 experts; dense; two matrices and 3
 * experts of 2 each. A place that were wrong would lie outside the block. */
static void check_layers(const uint8_t *bytes)
{
    const q3_mapping memory = {.data = bytes, .size = 90};
    const int32_t ids[] = {2, 0, 2, 1, 2};
    const size_t counts[] = {3, 2, 8};
    q3_hints hints = {0};
    size_t at = 0;
    CHECK(q3_hints_init(&hints, 4, 7, 3));
    for (size_t i = 0; i < 3; i++) {
        q3_hints_layer(&hints, 4 + i);
        for (size_t k = 0; k < counts[i]; k++) {
            if (k == 2) q3_hints_experts(&hints, 4 + i);
            size_t size = i == 0 && k == 2 ? 30 : 5;
            CHECK(q3_hints_add(&hints, &memory, bytes + at, size));
            at += size;
        }
    }
    q3_hints_layer(&hints, 7);
    CHECK(at == memory.size && hints.places.count == 13);
    CHECK(hints.first[4] == 0 && hints.experts[4] == 2 && hints.first[5] == 3);
    CHECK(hints.experts[5] == 5 && hints.first[6] == 5 && hints.experts[6] == 7);
    CHECK(hints.first[7] == 13);
    for (size_t layer = 0; layer < 9; layer++) q3_hints_turn(&hints, layer);
    for (size_t layer = 4; layer < 7; layer++) q3_hints_chosen(&hints, layer, ids, 5);
    q3_hints_free(&hints);
}

int main(void)
{
    const size_t page = 1 << 16;
    uint8_t *block = malloc(SIZE + page), *bytes = block;
    if (block == NULL) return 1;
    while ((uintptr_t)bytes % page != 0) bytes++; /* else no hint could do harm */
    folder_make("hints.tmp");
    folder_expect("weights");
    fill(bytes);
    check_mapping(bytes);
    check_layers(bytes);
    free(block);
    folder_remove();
    return t_done("hints");
}
