// Files and errors: what is read is what is there, what is written appears whole or not at all, and every
// refusal names the file and a remedy.
#include "engine/base/fail.h" // before cmocka, whose fail() is a macro: ours is called as (fail)(...) below

#include "tests/base/helper.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/file.h"

static int folder_setup(void **state) {
    *state = folder_create();
    return 0;
}

static int count_entries(const char *folder) {
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) n++;
    }
    closedir(dir);
    return n;
}

static int folder_teardown(void **state) {
    char *folder = *state;
    DIR *dir = opendir(folder);
    if (!dir) return -1;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *path = path_join(folder, entry->d_name);
        remove(path);
        free(path);
    }
    closedir(dir);
    int code = rmdir(folder);
    free(folder);
    return code;
}

static void assert_content(const char *path, const char *text) {
    flute_error err = {0};
    char *data = NULL;
    size_t size = 0;
    if (file_read(path, &data, &size, &err) != FLUTE_OK) fail_msg("%s", err.message);
    assert_int_equal(size, strlen(text));
    assert_string_equal(data, text);
    free(data);
}

static void test_error(void **state) {
    (void)state;
    flute_error err;
    assert_int_equal((fail)(&err, FLUTE_ESHAPE, "%s: K=%d", "w", 7), FLUTE_ESHAPE);
    assert_int_equal(err.code, FLUTE_ESHAPE);
    assert_string_equal(err.message, "w: K=7");
    assert_int_equal((fail)(NULL, FLUTE_EIO, "unheard"), FLUTE_EIO);
    assert_int_equal(fail_memory(&err, 123, "rows"), FLUTE_ENOMEM);
    assert_says(err.message, "123", "rows");
    assert_string_equal(flute_code_text(FLUTE_EFORMAT), "malformed file");
    assert_string_equal(flute_code_text(FLUTE_OK), "success");
    assert_string_equal(flute_code_text(77), "unknown error");
    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    (fail)(&err, FLUTE_EINVAL, "%s", longer);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
}

static void test_read_and_map(void **state) {
    flute_error err = {0};
    char *path = path_join(*state, "text");
    size_t length = 300001;
    char *text = malloc(length + 1);
    for (size_t i = 0; i < length; i++) text[i] = (char)('a' + i % 26);
    text[length] = '\0';
    write_text(path, text);
    assert_content(path, text);
    file_map map;
    assert_int_equal(file_map_open(&map, path, &err), FLUTE_OK);
    assert_int_equal(map.size, length);
    assert_memory_equal(map.data, text, length);
    file_map_close(&map);
    assert_null(map.data);
    file_map_close(&map); // a closed map is a zeroed one
    write_text(path, "");
    assert_content(path, "");
    assert_int_equal(file_map_open(&map, path, &err), FLUTE_OK);
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    file_map_close(&map);
    free(text);
    free(path);
}

static void test_read_without_size(void **state) {
    (void)state;
    flute_error err = {0};
    char *data = NULL;
    size_t size = 0;
    assert_int_equal(file_read("/proc/self/status", &data, &size, &err), FLUTE_OK);
    assert_true(size > 0);
    assert_non_null(strstr(data, "Pid:"));
    free(data);
    assert_int_equal(file_read("/dev/null", &data, &size, &err), FLUTE_OK);
    assert_int_equal(size, 0);
    free(data);
}

static void test_read_pipe(void **state) {
    flute_error err = {0};
    char *path = path_join(*state, "pipe");
    assert_int_equal(mkfifo(path, 0600), 0);
    file_map map;
    assert_int_equal(file_map_open(&map, path, &err), FLUTE_EIO); // and does not wait for a writer
    assert_says(err.message, path, "save it as a file");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        FILE *pipe = fopen(path, "w");
        for (int i = 0; pipe && i < 50000; i++) fputs("0123456789", pipe);
        _exit(pipe && fclose(pipe) == 0 ? 0 : 1);
    }
    char *data = NULL;
    size_t size = 0;
    assert_int_equal(file_read(path, &data, &size, &err), FLUTE_OK);
    assert_int_equal(size, 500000);
    assert_memory_equal(data + 499990, "0123456789", 11);
    free(data);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    free(path);
}

static void test_read_refusals(void **state) {
    flute_error err = {0};
    char *missing = path_join(*state, "missing");
    char *data = NULL;
    size_t size = 0;
    file_map map;
    assert_int_equal(file_read(missing, &data, &size, &err), FLUTE_EIO);
    assert_says(err.message, missing, "check the path");
    assert_int_equal(file_map_open(&map, missing, &err), FLUTE_EIO);
    assert_says(err.message, missing, "check the path");
    assert_null(map.data);
    assert_int_equal(file_read(*state, &data, &size, &err), FLUTE_EIO);
    assert_says(err.message, *state, "is a directory");
    assert_int_equal(file_map_open(&map, *state, &err), FLUTE_EIO);
    assert_says(err.message, *state, "is a directory");
    assert_int_equal(file_map_open(&map, missing, NULL), FLUTE_EIO);
    assert_int_equal(file_read("", &data, &size, &err), FLUTE_EIO);
    assert_says(err.message, "empty file name", "check");
    free(missing);
}

static void test_write(void **state) {
    flute_error err = {0};
    char *path = path_join(*state, "out");
    mode_t before = umask(027);
    file_writer *writer = file_writer_open(path, &err);
    umask(before);
    assert_non_null(writer);
    assert_int_equal(file_writer_append(writer, "hello ", 6, &err), FLUTE_OK);
    assert_int_equal(file_writer_append(writer, "world", 5, &err), FLUTE_OK);
    assert_int_equal(file_writer_at(writer, 0, "J", 1, &err), FLUTE_OK);
    assert_int_equal(file_writer_size(writer), 11);
    assert_int_equal(file_writer_at(writer, 12, "!", 1, &err), FLUTE_OK); // a hole reads as zero
    assert_int_equal(file_writer_size(writer), 13);
    assert_int_equal(access(path, F_OK), -1); // not before the commit
    assert_int_equal(file_writer_commit(writer, &err), FLUTE_OK);
    char *data = NULL;
    size_t size = 0;
    assert_int_equal(file_read(path, &data, &size, &err), FLUTE_OK);
    assert_int_equal(size, 13);
    assert_memory_equal(data, "Jello world\0!", 13);
    free(data);
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0640); // what the umask left
    assert_int_equal(count_entries(*state), 1);
    free(path);
}

static void test_replace_or_keep(void **state) {
    flute_error err = {0};
    char *path = path_join(*state, "out");
    write_text(path, "old");
    file_writer *writer = file_writer_open(path, &err);
    assert_non_null(writer);
    assert_int_equal(file_writer_append(writer, "new", 3, &err), FLUTE_OK);
    assert_content(path, "old");
    file_writer_abort(writer);
    assert_content(path, "old");
    assert_int_equal(count_entries(*state), 1);
    writer = file_writer_open(path, &err);
    assert_non_null(writer);
    assert_int_equal(file_writer_append(writer, "new", 3, &err), FLUTE_OK);
    assert_int_equal(file_writer_commit(writer, &err), FLUTE_OK);
    assert_content(path, "new");
    assert_int_equal(count_entries(*state), 1);
    file_writer_abort(NULL);
    free(path);
}

static void test_write_through_link(void **state) {
    flute_error err = {0};
    char *real = path_join(*state, "real"), *link_path = path_join(*state, "link");
    char *dangling = path_join(*state, "dangling");
    write_text(real, "old");
    assert_int_equal(symlink("real", link_path), 0);
    assert_int_equal(symlink("nowhere", dangling), 0);
    file_writer *writer = file_writer_open(link_path, &err);
    assert_non_null(writer);
    assert_int_equal(file_writer_append(writer, "new", 3, &err), FLUTE_OK);
    assert_int_equal(file_writer_commit(writer, &err), FLUTE_OK);
    assert_content(real, "new");
    struct stat status;
    assert_int_equal(lstat(link_path, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    assert_null(file_writer_open(dangling, &err));
    assert_says(err.message, dangling, "remove it");
    assert_int_equal(count_entries(*state), 3);
    free(real);
    free(link_path);
    free(dangling);
}

static void test_write_refusals(void **state) {
    flute_error err = {0};
    assert_null(file_writer_open(*state, &err));
    assert_says(err.message, *state, "is a directory");
    assert_null(file_writer_open("", &err));
    assert_says(err.message, "empty file name", "check");
    assert_null(file_writer_open("/dev/null", &err)); // renaming onto it would replace the device
    assert_says(err.message, "/dev/null", "choose another");
    char *inside_missing = path_join(*state, "missing/out");
    assert_null(file_writer_open(inside_missing, &err));
    assert_says(err.message, inside_missing, "mkdir");
    char *slash = path_join(*state, "out/");
    assert_null(file_writer_open(slash, &err));
    assert_says(err.message, slash, "directory");
    char name[400];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    char *too_long = path_join(*state, name);
    file_writer *writer = file_writer_open(too_long, &err); // the temporary's name is cut, the file's is not
    if (writer) assert_int_equal(file_writer_commit(writer, &err), FLUTE_EIO);
    assert_says(err.message, "nnnn", "shorter");
    name[250] = '\0'; // fits, although eight more bytes would not
    char *nearly = path_join(*state, name);
    writer = file_writer_open(nearly, &err);
    assert_non_null(writer);
    assert_int_equal(file_writer_commit(writer, &err), FLUTE_OK);
    assert_content(nearly, "");
    assert_int_equal(count_entries(*state), 1);
    free(inside_missing);
    free(slash);
    free(too_long);
    free(nearly);
}

static void test_write_without_permission(void **state) {
    if (geteuid() == 0) { // root may write everywhere: try as somebody else, in a child
        assert_int_equal(chmod(*state, 0755), 0);
    } else {
        assert_int_equal(chmod(*state, 0555), 0);
    }
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) _exit(3);
        flute_error err = {0};
        char *path = path_join(*state, "out");
        if (file_writer_open(path, &err)) _exit(1);
        _exit(strstr(err.message, path) && strstr(err.message, "permission denied") ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(chmod(*state, 0755), 0);
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(count_entries(*state), 0);
}

// The file-size limit stands for a full disk: a short write first, then none. SIGXFSZ must not kill.
static void test_write_beyond_limit(void **state) {
    char *path = path_join(*state, "out");
    char *block = calloc(1, 100000);
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 150000;
    flute_error err = {0};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    file_writer *writer = file_writer_open(path, &err);
    int first = writer ? file_writer_append(writer, block, 100000, &err) : -100;
    int second = writer ? file_writer_append(writer, block, 100000, &err) : -100;
    uint64_t written = writer ? file_writer_size(writer) : 0;
    file_writer_abort(writer);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(first, FLUTE_OK);
    assert_int_equal(second, FLUTE_EIO);
    assert_int_equal(written, 150000);
    assert_says(err.message, path, "50000 more bytes");
    assert_says(err.message, "ulimit -f", "150000");
    assert_int_equal(count_entries(*state), 0);
    free(block);
    free(path);
}

static void test_write_offset_overflow(void **state) {
    flute_error err = {0};
    char *path = path_join(*state, "out");
    file_writer *writer = file_writer_open(path, &err);
    assert_non_null(writer);
    assert_int_equal(file_writer_at(writer, UINT64_MAX - 1, "xyz", 3, &err), FLUTE_EIO);
    assert_int_equal(file_writer_at(writer, INT64_MAX - 1, "xyz", 3, &err), FLUTE_EIO);
    assert_says(err.message, path, "3 more bytes");
    assert_int_equal(file_writer_size(writer), 0);
    file_writer_abort(writer);
    assert_int_equal(count_entries(*state), 0);
    free(path);
}

static void test_remove_all(void **state) {
    flute_error err = {0};
    char *first_path = path_join(*state, "first"), *second_path = path_join(*state, "second");
    file_writer *first = file_writer_open(first_path, &err), *second = file_writer_open(second_path, &err);
    assert_non_null(first);
    assert_non_null(second);
    assert_int_equal(file_writer_append(first, "x", 1, &err), FLUTE_OK);
    assert_int_equal(count_entries(*state), 2);
    file_writer_remove_all();
    assert_int_equal(count_entries(*state), 0);
    assert_int_equal(file_writer_commit(first, &err), FLUTE_EIO); // and nothing appears
    assert_says(err.message, first_path, "write it again");
    file_writer_abort(second);
    file_writer_remove_all();
    assert_int_equal(count_entries(*state), 0);
    free(first_path);
    free(second_path);
}

static void remove_and_exit(int signal_number) {
    (void)signal_number;
    file_writer_remove_all();
    _exit(130);
}

static void test_remove_on_signal(void **state) {
    char *path = path_join(*state, "out");
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGINT, remove_and_exit);
        file_writer *writer = file_writer_open(path, NULL);
        if (!writer || file_writer_append(writer, "half", 4, NULL) != FLUTE_OK) _exit(1);
        if (write(ready[1], "", 1) != 1) _exit(2);
        for (;;) pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(count_entries(*state), 1);
    assert_int_equal(kill(child, SIGINT), 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 130);
    assert_int_equal(count_entries(*state), 0);
    close(ready[0]);
    close(ready[1]);
    free(path);
}

static void test_many_writers(void **state) {
    file_writer *writers[100] = {0};
    flute_error err = {0};
    int n = 0;
    for (; n < 100; n++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", n);
        char *path = path_join(*state, name);
        writers[n] = file_writer_open(path, &err);
        free(path);
        if (!writers[n]) break;
    }
    assert_int_equal(n, 64);
    assert_says(err.message, "64", "finish some");
    assert_int_equal(count_entries(*state), 64);
    for (int i = 0; i < n; i++) file_writer_abort(writers[i]);
    assert_int_equal(count_entries(*state), 0);
}

#define FOLDER_TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error),
        FOLDER_TEST(test_read_and_map),
        cmocka_unit_test(test_read_without_size),
        FOLDER_TEST(test_read_pipe),
        FOLDER_TEST(test_read_refusals),
        FOLDER_TEST(test_write),
        FOLDER_TEST(test_replace_or_keep),
        FOLDER_TEST(test_write_through_link),
        FOLDER_TEST(test_write_refusals),
        FOLDER_TEST(test_write_without_permission),
        FOLDER_TEST(test_write_beyond_limit),
        FOLDER_TEST(test_write_offset_overflow),
        FOLDER_TEST(test_remove_all),
        FOLDER_TEST(test_remove_on_signal),
        FOLDER_TEST(test_many_writers),
    };
    return cmocka_run_group_tests_name("file", tests, NULL, NULL);
}
