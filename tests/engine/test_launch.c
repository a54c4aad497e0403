// What launchers say in the environment: which rank this process is, of how many, and where rank 0 is.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/launch.h"

typedef struct environment {
    const char *const *variables; // name, value, …, NULL
    launch expected;              // launcher NULL: alone
    const char *refusal;          // NULL: none
} environment;

static const char *const names[] = {"RANK",
                                    "WORLD_SIZE",
                                    "MASTER_ADDR",
                                    "MASTER_PORT",
                                    "TORCHELASTIC_USE_AGENT_STORE",
                                    "OMPI_COMM_WORLD_RANK",
                                    "OMPI_COMM_WORLD_SIZE",
                                    "OMPI_COMM_WORLD_LOCAL_SIZE",
                                    "PMI_RANK",
                                    "PMI_SIZE",
                                    "SLURM_PROCID",
                                    "SLURM_STEP_NUM_TASKS",
                                    "SLURM_STEP_NODELIST"};

#define SET(...)                                                                                             \
    (const char *const[]) {                                                                                  \
        __VA_ARGS__, NULL                                                                                    \
    }
#define LAUNCH(by, r, n, where, at, with_mpi)                                                                \
    { .place = {.rank = r, .size = n, .address = where, .port = at}, .launcher = by, .mpi = with_mpi }

#define ALONE                                                                                                \
    { .launcher = NULL }

static const char variables[] = "RANK and WORLD_SIZE";

static void check(const environment *e) {
    launch l;
    flute_error err = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
    for (const char *const *at = e->variables; *at; at += 2) setenv(at[0], at[1], 1);
    const int code = launch_read_environment(&l, &err);
    if (e->refusal) {
        assert_int_equal(code, FLUTE_EINVAL);
        if (!strstr(err.message, e->refusal)) fail_msg("'%s' lacks '%s'", err.message, e->refusal);
        return;
    }
    if (code) fail_msg("%s", err.message);
    if (!e->expected.launcher) {
        assert_null(l.launcher);
        assert_int_equal(l.place.size, 1);
        return;
    }
    assert_string_equal(l.launcher, e->expected.launcher);
    assert_int_equal(l.place.rank, e->expected.place.rank);
    assert_int_equal(l.place.size, e->expected.place.size);
    assert_string_equal(l.place.address, e->expected.place.address);
    assert_int_equal(l.place.port, e->expected.place.port);
    assert_int_equal(l.mpi, e->expected.mpi);
    assert_int_equal(l.place.listener, -1);
}

static void test_launchers(void **state) {
    (void)state;
    const environment cases[] = {
        {SET("MASTER_ADDR", "alpha"), ALONE, NULL},
        {SET("RANK", "0", "WORLD_SIZE", "1"), ALONE, NULL},
        {SET("RANK", "2"), ALONE, NULL},
        {SET("RANK", "2", "WORLD_SIZE", "4"), LAUNCH(variables, 2, 4, "127.0.0.1", 29500, false), NULL},
        {SET("RANK", "9", "WORLD_SIZE", "16", "MASTER_ADDR", "alpha", "MASTER_PORT", "1234"),
         LAUNCH(variables, 9, 16, "alpha", 1234, false), NULL},
        // torchrun keeps its own store at MASTER_PORT
        {SET("RANK", "1", "WORLD_SIZE", "2", "MASTER_PORT", "1234", "TORCHELASTIC_USE_AGENT_STORE", "True"),
         LAUNCH(variables, 1, 2, "127.0.0.1", 1235, false), NULL},
        {SET("OMPI_COMM_WORLD_RANK", "3", "OMPI_COMM_WORLD_SIZE", "4", "OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
         LAUNCH("Open MPI", 3, 4, "127.0.0.1", 29500, true), NULL},
        {SET("OMPI_COMM_WORLD_RANK", "3", "OMPI_COMM_WORLD_SIZE", "4", "OMPI_COMM_WORLD_LOCAL_SIZE", "2",
             "MASTER_ADDR", "alpha"),
         LAUNCH("Open MPI", 3, 4, "alpha", 29500, true), NULL},
        {SET("PMI_RANK", "1", "PMI_SIZE", "2"), LAUNCH("PMI", 1, 2, "127.0.0.1", 29500, true), NULL},
        {SET("SLURM_PROCID", "5", "SLURM_STEP_NUM_TASKS", "8", "SLURM_STEP_NODELIST", "gpu[03-04,07],login"),
         LAUNCH("Slurm", 5, 8, "gpu03", 29500, false), NULL},
        {SET("SLURM_PROCID", "5", "SLURM_STEP_NUM_TASKS", "8", "SLURM_STEP_NODELIST", "alpha,beta"),
         LAUNCH("Slurm", 5, 8, "alpha", 29500, false), NULL},
        // in an allocation, but not started by srun
        {SET("SLURM_PROCID", "0", "SLURM_NTASKS", "8"), ALONE, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check(&cases[i]);
}

static void test_nonsense(void **state) {
    (void)state;
    const environment cases[] = {
        {SET("RANK", "4", "WORLD_SIZE", "4"), ALONE, "RANK=4, WORLD_SIZE=4"},
        {SET("RANK", "one", "WORLD_SIZE", "4"), ALONE, "RANK=one"},
        {SET("RANK", "0", "WORLD_SIZE", "2000"), ALONE, "WORLD_SIZE=2000"},
        {SET("RANK", "1", "WORLD_SIZE", "2", "MASTER_PORT", "http"), ALONE, "MASTER_PORT is http"},
        {SET("OMPI_COMM_WORLD_RANK", "3", "OMPI_COMM_WORLD_SIZE", "4", "OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
         ALONE, "mpirun -x MASTER_ADDR=HOST"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check(&cases[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_launchers), cmocka_unit_test(test_nonsense)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
