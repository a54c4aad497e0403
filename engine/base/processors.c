// How many processors this process may use: the affinity mask, and the CPU quota of its cgroup (containers).
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/threads.h"

// The kernel refuses (EINVAL) a mask that is shorter than its own: grow until it fits.
static int count_affinity(void) {
    for (int n_bits = 1024; n_bits <= 1 << 20; n_bits *= 2) {
        cpu_set_t *set = CPU_ALLOC(n_bits);
        if (!set) break;
        size_t size = CPU_ALLOC_SIZE(n_bits);
        bool got = sched_getaffinity(0, size, set) == 0;
        int n_cpus = got ? CPU_COUNT_S(size, set) : 0;
        bool too_short = !got && errno == EINVAL;
        CPU_FREE(set);
        if (got) return n_cpus;
        if (!too_short) break;
    }
    long n_online = sysconf(_SC_NPROCESSORS_ONLN);
    return n_online < 1 ? 1 : n_online > INT_MAX ? INT_MAX : (int)n_online;
}

static bool read_line(const char *path, char *line, size_t size) {
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool got = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return got;
}

// Whole processors in a quota, 0 for no limit. Rounded down: a worker that runs into the quota stops for the
// rest of the 100 ms period, and every barrier waits for it.
static int quota_to_processors(long long quota_us, long long period_us) {
    if (quota_us <= 0 || period_us <= 0) return 0;
    long long n = quota_us / period_us;
    return n < 1 ? 1 : n > INT_MAX ? INT_MAX : (int)n;
}

// The limit that one cgroup sets itself: cpu.max (version 2) or cpu.cfs_* (version 1).
static int directory_limit(const char *directory, bool version2) {
    char path[2 * PATH_MAX + 32], line[128];
    long long quota = 0, period = 0;
    if (version2) {
        snprintf(path, sizeof path, "%s/cpu.max", directory);
        // "max 100000" has no number first, and sscanf reads none of the two.
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lld %lld", &quota, &period) != 2) return 0;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1) return 0;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1) return 0;
    }
    return quota_to_processors(quota, period);
}

// The smallest limit on the way from group up to root, as every ancestor's limit binds. Inside a container
// the named group may not be visible, and root itself is the container's own: both are looked at.
static int path_limit(const char *root, const char *group, bool version2) {
    char directory[2 * PATH_MAX];
    size_t root_length = strlen(root);
    if (snprintf(directory, sizeof directory, "%s%s", root, group) >= (int)sizeof directory) return 0;
    int smallest = 0;
    for (;;) {
        int limit = directory_limit(directory, version2);
        if (limit && (!smallest || limit < smallest)) smallest = limit;
        char *slash = strrchr(directory, '/');
        if (!slash || slash < directory + root_length) return smallest;
        *slash = '\0';
    }
}

static bool list_has(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *item = list; item; item = strchr(item, ',')) {
        if (*item == ',') item++;
        if (strncmp(item, word, length) == 0 && (item[length] == ',' || item[length] == '\0')) return true;
    }
    return false;
}

int threads_quota(const char *membership, const char *mount) {
    FILE *file = fopen(membership, "re");
    if (!file) return 0;
    char line[PATH_MAX + 256];
    int smallest = 0;
    while (fgets(line, sizeof line, file)) { // "hierarchy:controllers:/group"
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *controllers++ = '\0';
        *group++ = '\0';
        bool version2 = *controllers == '\0';
        if (!version2 && !list_has(controllers, "cpu")) continue;
        char root[PATH_MAX];
        snprintf(root, sizeof root, version2 ? "%s" : "%s/cpu", mount);
        int limit = path_limit(root, group, version2);
        if (limit && (!smallest || limit < smallest)) smallest = limit;
    }
    fclose(file);
    return smallest;
}

int threads_available(void) {
    int n = count_affinity();
    int quota = threads_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota && quota < n) n = quota;
    return n < 1 ? 1 : n;
}
