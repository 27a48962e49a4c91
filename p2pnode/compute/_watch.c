/* Which nodes of llama.cpp's graph a tap wants (compute/taps.py). llama.cpp asks for each of them, hundreds of times
 * a token; asked in Python that is 1 to 2 % of a decoded token. Built with the package where there is a C compiler,
 * loaded with ctypes; where it is missing, taps.py asks in Python, with the same answers. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef bool (*eval_callback)(void *tensor, bool ask, void *data);

struct watched {
    eval_callback take; /* hears of every wanted node once it is computed */
    size_t name_at;     /* where a tensor keeps its name, and the pointer to its first operand */
    size_t source_at;
    size_t name_count;
    size_t weight_count;
    const char *const *names;   /* wanted by their own name */
    const char *const *weights; /* their products are wanted; all names begin with "blk." */
};

static bool is_among(const char *name, const char *const *names, size_t count) {
    for (size_t n = 0; n < count; n++)
        if (strcmp(name, names[n]) == 0)
            return true;
    return false;
}

EXPORT bool p2pnode_watch(void *tensor, bool ask, void *data) {
    const struct watched *watched = data;
    const char *source;
    if (!ask)
        return watched->take(tensor, false, NULL);
    if (is_among((const char *)tensor + watched->name_at, watched->names, watched->name_count))
        return true;
    if (!watched->weight_count)
        return false;
    memcpy(&source, (const char *)tensor + watched->source_at, sizeof source);
    if (!source || memcmp(source + watched->name_at, "blk.", 4) != 0)
        return false;
    return is_among(source + watched->name_at, watched->weights, watched->weight_count);
}

#if defined(__linux__) && defined(__LP64__)
/* Preloaded into engines that stream a model (compute/engine_process.py): llama.cpp maps files with MAP_POPULATE, which
 * makes all of a model resident at once, however small the part of it that may stay. Pages come when they are read. */
EXPORT void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    return (void *)syscall(SYS_mmap, address, length, protection, flags & ~MAP_POPULATE, file, offset);
}
#endif
