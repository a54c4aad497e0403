#include "engine/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"

enum { DEFAULT_PORT = 29500, GRACE_SECONDS = 5 };

// ---- Environment

// In the order of preference: whoever sets RANK and WORLD_SIZE means it.
static const struct launcher {
    const char *name, *rank, *size;
    bool mpi;
} launchers[] = {
    {"RANK and WORLD_SIZE", "RANK", "WORLD_SIZE", false},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", true},
    {"PMI", "PMI_RANK", "PMI_SIZE", true},
    {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", false}, // the latter: only what srun starts is a rank
};

// A number from the environment; -1 where there is none, -2 where it is none.
static long read_number(const char *name) {
    const char *text = getenv(name);
    char *end;
    if (!text || !*text) return -1;
    const long value = strtol(text, &end, 10);
    return *end || value < 0 || value > 65535 ? -2 : value;
}

// The first host of a Slurm list such as "gpu[03-04,07],login": gpu03.
static void first_host(const char *list, char *out, size_t size) {
    const size_t plain = strcspn(list, "[,");
    const char *number = list[plain] == '[' ? list + plain + 1 : "";
    snprintf(out, size, "%.*s%.*s", (int)plain, list, (int)strcspn(number, "-,]"), number);
}

static int find_rank_0(launch *out, flute_error *err) {
    rank_place *place = &out->place;
    const char *address = getenv("MASTER_ADDR"), *nodes = getenv("SLURM_STEP_NODELIST");
    const long port = read_number("MASTER_PORT"), local_size = read_number("OMPI_COMM_WORLD_LOCAL_SIZE");
    const char *agent = getenv("TORCHELASTIC_USE_AGENT_STORE");
    if (port == -2)
        return fail(err, FLUTE_EINVAL, "MASTER_PORT is %s, which is no port", getenv("MASTER_PORT"));
    place->port = port > 0 ? (int)port : DEFAULT_PORT;
    if (agent && strcmp(agent, "True") == 0) place->port++; // torchrun itself listens at MASTER_PORT
    if (address && *address)
        snprintf(place->address, sizeof place->address, "%s", address);
    else if (strcmp(out->launcher, "Slurm") == 0 && nodes)
        first_host(nodes, place->address, sizeof place->address);
    else if (local_size > 0 && local_size < place->size)
        return fail(err, FLUTE_EINVAL,
                    "the ranks are on several hosts: say where rank 0 is, with mpirun -x MASTER_ADDR=HOST");
    else
        snprintf(place->address, sizeof place->address, "127.0.0.1");
    return FLUTE_OK;
}

int launch_read_environment(launch *out, flute_error *err) {
    *out = (launch){.place = {.size = 1, .listener = -1}};
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const struct launcher *l = &launchers[i];
        const long rank = read_number(l->rank), size = read_number(l->size);
        if (rank == -1 || size == -1) continue;
        if (rank < 0 || size < 1 || size > RANKS_MAX || rank >= size)
            return fail(err, FLUTE_EINVAL, "the environment makes no sense: %s=%s, %s=%s", l->rank,
                        getenv(l->rank), l->size, getenv(l->size));
        if (size == 1) return FLUTE_OK;
        *out = (launch){.place = {.rank = (int)rank, .size = (int)size, .listener = -1},
                        .launcher = l->name,
                        .mpi = getenv("OMPI_COMM_WORLD_RANK") || getenv("PMI_RANK")};
        return find_rank_0(out, err);
    }
    return FLUTE_OK;
}

// ---- Fork

typedef struct children {
    int n;
    pid_t pids[RANKS_MAX]; // 0: has ended
    int status;            // of the first one that failed, rank 0's if it failed too; 0
} children;

static void signal_all(const children *c, int signal_number) {
    for (int rank = 0; rank < c->n; rank++)
        if (c->pids[rank] > 0) kill(c->pids[rank], signal_number);
}

// Takes note of those that have ended; returns how many are left.
static int reap(children *c) {
    int left = 0;
    for (int rank = 0; rank < c->n; rank++) {
        int status;
        if (c->pids[rank] > 0 && waitpid(c->pids[rank], &status, WNOHANG) == c->pids[rank]) {
            const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            if (code && (c->status == 0 || rank == 0)) c->status = code;
            c->pids[rank] = 0;
        }
        left += c->pids[rank] > 0;
    }
    return left;
}

// The ranks end one another when one fails (ranks.c); what has not ended GRACE_SECONDS after the first one is
// killed.
static void watch_children(children *c, const sigset_t *signals) {
    const struct timespec tick = {.tv_nsec = 200 * 1000 * 1000};
    double first_end = 0;
    for (;;) {
        siginfo_t info;
        const int got = sigtimedwait(signals, &info, &tick);
        // A terminal sends its Ctrl-C to all of us; rank 0 has had it already.
        const bool from_terminal = got == SIGINT && info.si_code == SI_KERNEL;
        if (got > 0 && got != SIGCHLD && !from_terminal && c->pids[0] > 0) kill(c->pids[0], got);
        const int left = reap(c);
        if (left == 0) return;
        if (left == c->n) continue;
        const double now = seconds_now();
        if (first_end == 0) first_end = now;
        if (now - first_end > GRACE_SECONDS) {
            if (c->status == 0) c->status = 1;
            signal_all(c, SIGKILL);
        }
    }
}

static void become_rank(launch *out, int rank, int listener, pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) raise(SIGKILL); // it was gone before
    out->place.rank = rank;
    if (rank == 0) {
        out->place.listener = listener;
        return;
    }
    close(listener);
    const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing >= 0) {
        dup2(nothing, STDIN_FILENO);
        close(nothing);
    }
}

int launch_fork(launch *out, int n, int *status, flute_error *err) {
    int listener;
    *status = -1;
    *out = (launch){.place = {.size = n, .listener = -1, .address = "127.0.0.1"}, .launcher = "flute"};
    if (n > RANKS_MAX) return fail(err, FLUTE_EINVAL, "%d ranks; at most %d work", n, RANKS_MAX);
    int code = rendezvous_listen_local(&listener, &out->place.port, err);
    if (code) return code;
    sigset_t signals, before;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, &before);
    signal(SIGCHLD,
           SIG_DFL); // whoever started us may have had it ignored, and children would leave no status
    fflush(NULL);
    const pid_t parent = getpid();
    children c = {.n = n};
    for (int rank = 0; rank < n && !code; rank++) {
        c.pids[rank] = fork();
        if (c.pids[rank] == 0) {
            sigprocmask(SIG_SETMASK, &before, NULL);
            become_rank(out, rank, listener, parent);
            return FLUTE_OK;
        }
        if (c.pids[rank] < 0)
            code = fail(err, FLUTE_ENOMEM, "cannot start rank %d: %s", rank, strerror(errno));
    }
    close(listener);
    if (code) signal_all(&c, SIGKILL);
    watch_children(&c, &signals);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (!code) *status = c.status;
    return code;
}
