/* SPDX-License-Identifier: MIT */
/* Loads the shared libraries under test. */
#include "under_test.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

const under_test *load_under_test(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const under_test *table = library == NULL ? NULL : dlsym(library, "q3_under_test");
    if (table == NULL) {
        fprintf(stderr, "%s: %s\n", path, dlerror());
        exit(2);
    }
    return table;
}
