#include "engine/ranks.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "engine/launch.h"

enum { MAX_COMMS = 16, WATCH_TICK_MS = 200, PARTING_MS = 5000, DEFAULT_TIMEOUT = 60 };

// What goes over the connections that tell of an end.
typedef enum watch_kind { WATCH_BYE, WATCH_FAILED } watch_kind;
typedef struct watch_message {
    int32_t kind;
    flute_error cause; // of WATCH_FAILED
} watch_message;

typedef struct reply_header {
    int32_t code;
    flute_error err;
    uint64_t size; // bytes that follow
} reply_header;

struct flute_ranks {
    int size;
    bool mpi;
    rank_link self;
    int n_links;      // of rank 0: size, the first one unused; of the others: 1, to rank 0
    rank_link *links; // (n_links)
    void (*on_failure)(const flute_error *cause);
    int n_models;
    uint8_t *outbox; // the message that is being told
    size_t outbox_size;
    pthread_mutex_t telling; // one message at a time

    pthread_t watcher;
    bool watching;
    int stop; // eventfd: ends the watcher

    pthread_mutex_t lock; // of what follows
    bool failed, leaving;
    flute_error cause;
    comm *comms[MAX_COMMS]; // watched ones; NULL: free
};

int flute_ranks_rank(const flute_ranks *ranks) {
    return ranks ? ranks->self.rank : 0;
}

int ranks_size(const flute_ranks *ranks) {
    return ranks ? ranks->size : 1;
}

int ranks_local_rank(const flute_ranks *ranks) {
    return ranks ? ranks->self.local_rank : 0;
}

int ranks_local_size(const flute_ranks *ranks) {
    return ranks ? ranks->self.local_size : 1;
}

const rank_link *ranks_peer(const flute_ranks *ranks, int rank) {
    if (rank == ranks->self.rank) return &ranks->self;
    return &ranks->links[ranks->self.rank == 0 ? rank : 0];
}

int ranks_new_model(flute_ranks *ranks) {
    return ranks->n_models++;
}

// ---- Watching

static void *watch(void *argument);

// The first cause counts. Rank 0 passes it on; others tell rank 0 unless it came from there.
static void declare_failure(flute_ranks *ranks, const flute_error *cause, bool from_rank_0, bool speak) {
    pthread_mutex_lock(&ranks->lock);
    const bool first = !ranks->failed && !ranks->leaving;
    if (first) {
        ranks->failed = true;
        ranks->cause = *cause;
    }
    pthread_mutex_unlock(&ranks->lock);
    if (!first) return;
    watch_message message = {.kind = WATCH_FAILED, .cause = *cause};
    for (int i = 0; i < ranks->n_links && !from_rank_0; i++)
        if (ranks->links[i].watch >= 0)
            send(ranks->links[i].watch, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (ranks->on_failure) ranks->on_failure(speak ? cause : NULL);
    pthread_mutex_lock(&ranks->lock);
    for (int i = 0; i < MAX_COMMS; i++)
        if (ranks->comms[i]) ranks->comms[i]->ops->abort(ranks->comms[i]);
    pthread_mutex_unlock(&ranks->lock);
    for (int i = 0; i < ranks->n_links; i++) // wakes who waits for a command or a reply
        if (ranks->links[i].command >= 0) shutdown(ranks->links[i].command, SHUT_RDWR);
}

// The end of a connection that nobody announced. Where rank 0 is gone, rank 1 says so.
static void peer_is_gone(flute_ranks *ranks, const rank_link *peer) {
    flute_error cause = {0};
    const int rank = ranks->self.rank == 0 ? peer->rank : 0;
    if (rank == 0)
        fail(&cause, FLUTE_EDEVICE, "rank 0 has died: killed, crashed, or cut off");
    else
        fail(&cause, FLUTE_EDEVICE, "rank %d (pid %ld on %s) has died: killed, crashed, or cut off", rank,
             peer->pid, peer->host);
    declare_failure(ranks, &cause, rank == 0, ranks->self.rank <= 1);
}

// A message, or the end. False: the peer needs no more watching.
static bool hear(flute_ranks *ranks, const rank_link *peer) {
    watch_message message;
    if (socket_receive(peer->watch, &message, sizeof message)) {
        peer_is_gone(ranks, peer);
        return false;
    }
    if (message.kind == WATCH_BYE) return false;
    flute_error cause = {0};
    message.cause.message[sizeof message.cause.message - 1] = 0;
    if (ranks->self.rank == 0)
        fail(&cause, message.cause.code, "rank %d (pid %ld on %s): %.400s", peer->rank, peer->pid, peer->host,
             message.cause.message);
    else
        cause = message.cause;
    declare_failure(ranks, &cause, ranks->self.rank != 0, ranks->self.rank == 0);
    return false;
}

static void ask_comms(flute_ranks *ranks) {
    flute_error cause = {0};
    int code = FLUTE_OK;
    pthread_mutex_lock(&ranks->lock);
    for (int i = 0; i < MAX_COMMS && !code; i++)
        if (ranks->comms[i]) code = ranks->comms[i]->ops->error(ranks->comms[i], &cause);
    pthread_mutex_unlock(&ranks->lock);
    if (code) declare_failure(ranks, &cause, false, ranks->self.rank == 0);
}

// Ends when asked to, or when there is nobody left to watch.
static void *watch(void *argument) {
    flute_ranks *ranks = argument;
    struct pollfd *fds = calloc((size_t)ranks->n_links + 1, sizeof *fds);
    if (!fds) return NULL;
    int n_watched = 0;
    for (int i = 0; i < ranks->n_links; i++) {
        fds[i] = (struct pollfd){.fd = ranks->links[i].watch, .events = POLLIN};
        n_watched += ranks->links[i].watch >= 0;
    }
    fds[ranks->n_links] = (struct pollfd){.fd = ranks->stop, .events = POLLIN};
    while (n_watched > 0 && !(fds[ranks->n_links].revents & POLLIN)) {
        if (poll(fds, (nfds_t)ranks->n_links + 1, WATCH_TICK_MS) < 0) continue;
        for (int i = 0; i < ranks->n_links; i++) {
            if (!fds[i].revents || hear(ranks, &ranks->links[i])) continue;
            fds[i].fd = -1;
            fds[i].revents = 0;
            n_watched--;
        }
        ask_comms(ranks);
    }
    free(fds);
    return NULL;
}

void ranks_watch_comm(flute_ranks *ranks, comm *c) {
    pthread_mutex_lock(&ranks->lock);
    int slot = 0;
    while (slot < MAX_COMMS - 1 && ranks->comms[slot]) slot++;
    ranks->comms[slot] = c;
    if (ranks->failed) c->ops->abort(c);
    pthread_mutex_unlock(&ranks->lock);
}

void ranks_forget_comm(flute_ranks *ranks, comm *c) {
    pthread_mutex_lock(&ranks->lock);
    for (int i = 0; i < MAX_COMMS; i++)
        if (ranks->comms[i] == c) ranks->comms[i] = NULL;
    pthread_mutex_unlock(&ranks->lock);
}

int ranks_failure(flute_ranks *ranks, int code, flute_error *err) {
    pthread_mutex_lock(&ranks->lock);
    if (ranks->failed) code = fail(err, ranks->cause.code, "%s", ranks->cause.message);
    pthread_mutex_unlock(&ranks->lock);
    return code;
}

void ranks_give_up(flute_ranks *ranks, const flute_error *cause) {
    watch_message message = {.kind = WATCH_FAILED, .cause = *cause};
    socket_send(ranks->links[0].watch, &message, sizeof message);
}

void ranks_end_all(flute_ranks *ranks, const flute_error *cause) {
    static const flute_error unknown = {FLUTE_EDEVICE, "rank 0 has failed"};
    declare_failure(ranks, cause ? cause : &unknown, false, true);
}

// ---- Start and end

static int start_watcher(flute_ranks *ranks, flute_error *err) {
    sigset_t all, before; // signals are for the threads that were there before
    ranks->stop = eventfd(0, EFD_CLOEXEC);
    if (ranks->stop < 0) return fail(err, FLUTE_ENOMEM, "no eventfd for the ranks: %s", strerror(errno));
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&ranks->watcher, NULL, watch, ranks);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) return fail(err, FLUTE_ENOMEM, "no thread for the ranks: %s", strerror(error));
    ranks->watching = true;
    return FLUTE_OK;
}

static int meet(flute_ranks **out, const launch *l, const flute_ranks_options *options, flute_error *err) {
    flute_ranks *ranks = calloc(1, sizeof *ranks);
    if (!ranks) return fail_memory(err, sizeof *ranks, "the ranks");
    *ranks =
        (flute_ranks){.size = l->place.size, .mpi = l->mpi, .on_failure = options->on_failure, .stop = -1};
    pthread_mutex_init(&ranks->telling, NULL);
    pthread_mutex_init(&ranks->lock, NULL);
    const int n_links = l->place.rank == 0 ? l->place.size : 1;
    ranks->links = calloc((size_t)n_links, sizeof *ranks->links);
    int code =
        ranks->links ? FLUTE_OK : fail_memory(err, (size_t)n_links * sizeof *ranks->links, "the ranks");
    if (!code) code = rendezvous(&l->place, &ranks->self, ranks->links, err);
    if (!code) {
        ranks->n_links = n_links;
        code = start_watcher(ranks, err);
    }
    if (code) {
        flute_ranks_free(ranks);
        return code;
    }
    *out = ranks;
    return FLUTE_OK;
}

int flute_ranks_start(flute_ranks **out, const flute_ranks_options *options, int *status, flute_error *err) {
    static const flute_ranks_options defaults = {0};
    if (!options) options = &defaults;
    *out = NULL;
    *status = -1;
    launch l;
    if (options->n < 0 || options->timeout_s < 0)
        return fail(err, FLUTE_EINVAL, "%d ranks within %d s: both must be 0 or more", options->n,
                    options->timeout_s);
    int code = launch_read_environment(&l, err);
    if (code) return code;
    if (l.launcher && options->n && options->n != l.place.size)
        return fail(err, FLUTE_EINVAL, "%d ranks are wanted, but %s started %d", options->n, l.launcher,
                    l.place.size);
    if (!l.launcher && options->n <= 1) return FLUTE_OK;
    if (!l.launcher) {
        code = launch_fork(&l, options->n, status, err);
        if (code || *status >= 0) return code;
    }
    if (l.place.rank > 0) signal(SIGINT, SIG_IGN); // of a shared terminal: rank 0 decides
    l.place.timeout_s = options->timeout_s ? options->timeout_s : DEFAULT_TIMEOUT;
    return meet(out, &l, options, err);
}

void flute_ranks_leave(const flute_ranks *ranks) {
    if (!ranks) return;
    const watch_message message = {.kind = WATCH_FAILED, .cause = {.code = FLUTE_ECANCELED}};
    for (int i = 0; i < ranks->n_links; i++)
        if (ranks->links[i].watch >= 0)
            send(ranks->links[i].watch, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// Rank 0 waits until the others have said goodbye: a connection that is closed with unread bytes in it takes
// with it what was sent last.
static void part(flute_ranks *ranks) {
    pthread_mutex_lock(&ranks->lock);
    const bool failed = ranks->failed;
    ranks->leaving = true;
    pthread_mutex_unlock(&ranks->lock);
    const watch_message bye = {.kind = WATCH_BYE};
    if (ranks->self.rank == 0 && !failed) ranks_tell(ranks, RANKS_QUIT, 0, NULL, 0, NULL);
    for (int i = 0; i < ranks->n_links && !failed; i++)
        if (ranks->links[i].watch >= 0) socket_send(ranks->links[i].watch, &bye, sizeof bye);
    if (failed || ranks->self.rank != 0) {
        const uint64_t one = 1;
        if (write(ranks->stop, &one, sizeof one) < 0) return; // cannot be: a counter far from its limit
    } else {
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += PARTING_MS / 1000;
        if (pthread_timedjoin_np(ranks->watcher, NULL, &limit) == 0) return;
        const uint64_t one = 1;
        if (write(ranks->stop, &one, sizeof one) < 0) return;
    }
    pthread_join(ranks->watcher, NULL);
}

void flute_ranks_free(flute_ranks *ranks) {
    if (!ranks) return;
    if (ranks->watching) part(ranks);
    for (int i = 0; i < ranks->n_links; i++) {
        if (ranks->links[i].command >= 0) close(ranks->links[i].command);
        if (ranks->links[i].watch >= 0) close(ranks->links[i].watch);
    }
    if (ranks->stop >= 0) close(ranks->stop);
    pthread_mutex_destroy(&ranks->telling);
    pthread_mutex_destroy(&ranks->lock);
    free(ranks->links);
    free(ranks->outbox);
    free(ranks);
}

// ---- Communication

const comm_kind *ranks_host_comm(const flute_ranks *ranks, flute_comm wanted, flute_error *err) {
    if (wanted != FLUTE_COMM_LOCAL && ranks->mpi && comm_kind_mpi()) return comm_kind_mpi();
    if (wanted != FLUTE_COMM_MPI && ranks->self.local_size == ranks->size) return &comm_kind_local;
    if (wanted == FLUTE_COMM_LOCAL)
        fail(err, FLUTE_EUNSUPPORTED, "%d ranks on several hosts share no memory: leave --comm local out",
             ranks->size);
    else
        fail(err, FLUTE_EUNSUPPORTED,
             "%d ranks on several hosts, or by --comm mpi: start them with mpirun, with a flute that was "
             "built with MPI",
             ranks->size);
    return NULL;
}

static int lost(flute_ranks *ranks, int rank, flute_error *err) {
    fail(err, FLUTE_EDEVICE, "rank %d is gone", rank);
    return ranks_failure(ranks, FLUTE_EDEVICE, err);
}

int ranks_tell(flute_ranks *ranks, ranks_command command, int model, const ranks_part *parts, int n_parts,
               flute_error *err) {
    ranks_header header = {.command = (uint32_t)command, .model = model};
    for (int i = 0; i < n_parts; i++) header.size += parts[i].size;
    const size_t size = sizeof header + header.size;
    int code = FLUTE_OK;
    pthread_mutex_lock(&ranks->telling);
    if (ranks->outbox_size < size) {
        uint8_t *larger = realloc(ranks->outbox, size);
        if (!larger) {
            pthread_mutex_unlock(&ranks->telling);
            return fail_memory(err, size, "a message to the ranks");
        }
        ranks->outbox = larger;
        ranks->outbox_size = size;
    }
    uint8_t *at = ranks->outbox;
    memcpy(at, &header, sizeof header);
    at += sizeof header;
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].size) memcpy(at, parts[i].data, parts[i].size);
        at += parts[i].size;
    }
    for (int rank = 1; rank < ranks->size && !code; rank++)
        if (socket_send(ranks->links[rank].command, ranks->outbox, size)) code = lost(ranks, rank, err);
    pthread_mutex_unlock(&ranks->telling);
    return code;
}

int ranks_collect(flute_ranks *ranks, ranks_place *place, void *user, flute_error *err) {
    int code = FLUTE_OK;
    for (int rank = 1; rank < ranks->size; rank++) {
        const rank_link *link = &ranks->links[rank];
        reply_header reply;
        if (socket_receive(link->command, &reply, sizeof reply)) return lost(ranks, rank, err);
        if (reply.code && !code)
            code = fail(err, reply.code, "rank %d on %s: %.440s", rank, link->host, reply.err.message);
        if (reply.size == 0) continue;
        void *room = place ? place(user, rank, (size_t)reply.size) : NULL;
        if (!room) return fail(err, FLUTE_EDEVICE, "rank %d sent what it was not asked for", rank);
        if (socket_receive(link->command, room, (size_t)reply.size)) return lost(ranks, rank, err);
    }
    return code;
}

int ranks_receive(flute_ranks *ranks, void *data, size_t size, flute_error *err) {
    return socket_receive(ranks->links[0].command, data, size) ? lost(ranks, 0, err) : FLUTE_OK;
}

int ranks_reply(flute_ranks *ranks, const flute_error *result, const void *data, size_t size,
                flute_error *err) {
    const int socket = ranks->links[0].command;
    reply_header reply = {.code = result->code, .err = *result, .size = result->code ? 0 : size};
    int gone = socket_send(socket, &reply, sizeof reply);
    if (!gone && reply.size) gone = socket_send(socket, data, size);
    return gone ? lost(ranks, 0, err) : FLUTE_OK;
}
