#include "engine/rendezvous.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"

// What goes over the wire; all ranks are of one architecture.
#define HELLO_MAGIC "FLUTErnk"
enum { CHANNEL_COMMAND, CHANNEL_WATCH, N_CHANNELS };

typedef char host_id[192];

typedef struct hello {
    char magic[8];
    char version[32]; // of flute: all ranks must have the same, and with it the same messages
    int32_t rank, size, channel;
    int64_t pid;
    char host[64];   // its name
    host_id host_id; // equal where processes can share memory
} hello;

typedef struct welcome {
    int32_t code; // FLUTE_OK, or why not
    int32_t node, local_rank, local_size;
    char message[400];
} welcome;

// ---- Sockets

int socket_send(int socket, const void *data, size_t size) {
    for (const char *at = data; size > 0;) {
        const ssize_t n = send(socket, at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

int socket_receive(int socket, void *data, size_t size) {
    for (char *at = data; size > 0;) {
        const ssize_t n = recv(socket, at, size, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static void close_socket(int *socket) {
    if (*socket >= 0) close(*socket);
    *socket = -1;
}

static void set_timeout(int socket, int seconds) { // 0: none
    const struct timeval limit = {.tv_sec = seconds};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

// A host that has crashed or is cut off says nothing: notice within 8 seconds.
static void set_options(int socket) {
    const int on = 1, idle = 2, interval = 2, count = 3;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

static int resolve(const rank_place *place, int flags, struct addrinfo **out, flute_error *err) {
    char port[16];
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    snprintf(port, sizeof port, "%d", place->port);
    const int code = getaddrinfo(place->address, port, &hints, out);
    if (code == 0) return FLUTE_OK;
    return fail(err, FLUTE_EIO, "rank %d: the address of rank 0, %s: %s; set MASTER_ADDR", place->rank,
                place->address, gai_strerror(code));
}

static bool is_loopback(const struct sockaddr *address) {
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

// Listens on the loopback interface where that is the address, and else on all: the name of a host may mean
// another address to itself than to others.
static int listen_at(const rank_place *place, int *listener, flute_error *err) {
    struct addrinfo *address;
    const int on = 1;
    int code = resolve(place, AI_PASSIVE, &address, err);
    if (code) return code;
    if (!is_loopback(address->ai_addr)) {
        if (address->ai_family == AF_INET)
            ((struct sockaddr_in *)(void *)address->ai_addr)->sin_addr.s_addr = htonl(INADDR_ANY);
        else
            ((struct sockaddr_in6 *)(void *)address->ai_addr)->sin6_addr = in6addr_any;
    }
    *listener = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*listener >= 0) setsockopt(*listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (*listener < 0 || bind(*listener, address->ai_addr, address->ai_addrlen) || listen(*listener, 128)) {
        const int error = errno;
        code = fail(err, FLUTE_EIO, "rank 0 cannot listen at port %d: %s; set MASTER_PORT", place->port,
                    strerror(error));
        close_socket(listener);
    }
    freeaddrinfo(address);
    return code;
}

int rendezvous_listen_local(int *listener, int *port, flute_error *err) {
    const rank_place any = {.address = "127.0.0.1"};
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    int code = listen_at(&any, listener, err);
    if (code) return code;
    if (getsockname(*listener, (struct sockaddr *)&address, &size))
        return fail(err, FLUTE_EIO, "a socket for the ranks: %s", strerror(errno));
    *port = ntohs(address.sin_port);
    return FLUTE_OK;
}

// ---- Who is who

static void read_line(const char *path, char *out, size_t size) {
    FILE *file = fopen(path, "re");
    *out = 0;
    if (!file) return;
    if (fgets(out, (int)size, file)) out[strcspn(out, "\n")] = 0;
    fclose(file);
}

static void introduce(const rank_place *place, hello *out) {
    char boot[64], pids[64] = "";
    *out = (hello){.rank = place->rank, .size = place->size, .pid = getpid()};
    memcpy(out->magic, HELLO_MAGIC, sizeof out->magic);
    snprintf(out->version, sizeof out->version, "%s", FLUTE_VERSION);
    gethostname(out->host, sizeof out->host - 1);
    read_line("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    if (readlink("/proc/self/ns/pid", pids, sizeof pids - 1) < 0) pids[0] = 0;
    snprintf(out->host_id, sizeof out->host_id, "%s %s", boot, pids);
}

static int check_hello(const rank_place *place, const rank_link *links, const hello *h, flute_error *err) {
    const char *host = h->host;
    const long long pid = (long long)h->pid;
    if (strcmp(h->version, FLUTE_VERSION) != 0)
        return fail(err, FLUTE_EVERSION, "rank %d (pid %lld on %s) is flute %s, rank 0 is flute %s", h->rank,
                    pid, host, h->version, FLUTE_VERSION);
    if (h->size != place->size)
        return fail(err, FLUTE_EINVAL, "rank %d (pid %lld on %s) is one of %d ranks, rank 0 one of %d",
                    h->rank, pid, host, h->size, place->size);
    if (h->rank < 1 || h->rank >= place->size || h->channel < 0 || h->channel >= N_CHANNELS)
        return fail(err, FLUTE_EINVAL, "rank %d (pid %lld on %s): there are ranks 1 to %d beside rank 0",
                    h->rank, pid, host, place->size - 1);
    const rank_link *link = &links[h->rank];
    if ((h->channel == CHANNEL_COMMAND ? link->command : link->watch) >= 0 || (link->pid && link->pid != pid))
        return fail(err, FLUTE_EINVAL, "rank %d came twice: pid %ld on %s and pid %lld on %s", h->rank,
                    link->pid, link->host, pid, host);
    return FLUTE_OK;
}

// ---- Rank 0

typedef struct gathering {
    const rank_place *place;
    rank_link *links;
    hello own;
    host_id *host_ids; // (size)
} gathering;

static void refuse(int socket, const flute_error *err) {
    welcome w = {.code = err->code};
    snprintf(w.message, sizeof w.message, "%.399s", err->message);
    socket_send(socket, &w, sizeof w);
}

// One connection. Those that do not speak as ranks do are strangers and are ignored.
static int receive_one(gathering *g, int socket, int *n_come, flute_error *err) {
    hello h;
    set_timeout(socket, 2);
    if (socket_receive(socket, &h, sizeof h) || memcmp(h.magic, HELLO_MAGIC, sizeof h.magic) != 0) {
        close(socket);
        return FLUTE_OK;
    }
    h.version[sizeof h.version - 1] = h.host[sizeof h.host - 1] = h.host_id[sizeof h.host_id - 1] = 0;
    flute_error local = {0};
    int code = check_hello(g->place, g->links, &h, &local);
    if (code) {
        refuse(socket, &local);
        close(socket);
        return fail(err, code, "%s", local.message);
    }
    set_timeout(socket, 0);
    set_options(socket);
    rank_link *link = &g->links[h.rank];
    *(h.channel == CHANNEL_COMMAND ? &link->command : &link->watch) = socket;
    link->pid = (long)h.pid;
    memcpy(link->host, h.host, sizeof link->host);
    memcpy(g->host_ids[h.rank], h.host_id, sizeof h.host_id);
    (*n_come)++;
    return FLUTE_OK;
}

static int report_missing(const gathering *g, flute_error *err) {
    char list[64] = "";
    int n = 0;
    for (int rank = 1; rank < g->place->size; rank++) {
        if (g->links[rank].command >= 0 && g->links[rank].watch >= 0) continue;
        const size_t used = strlen(list);
        if (n++ < 8) snprintf(list + used, sizeof list - used, "%s%d", used ? ", " : "", rank);
    }
    return fail(err, FLUTE_EIO, "rank%s %s%s did not come to %s port %d within %d s", n > 1 ? "s" : "", list,
                n > 8 ? ", …" : "", g->place->address, g->place->port, g->place->timeout_s);
}

static int receive_all(gathering *g, int listener, flute_error *err) {
    const double deadline = seconds_now() + g->place->timeout_s;
    const int n_wanted = (g->place->size - 1) * N_CHANNELS;
    for (int n_come = 0; n_come < n_wanted;) {
        const double left = deadline - seconds_now();
        struct pollfd waiting = {.fd = listener, .events = POLLIN};
        if (left <= 0) return report_missing(g, err);
        if (poll(&waiting, 1, (int)(left * 1e3) + 1) <= 0) continue;
        const int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (socket < 0) continue;
        int code = receive_one(g, socket, &n_come, err);
        if (code) return code;
    }
    return FLUTE_OK;
}

// Numbers hosts, and ranks on each, in the order of ranks.
static void number_hosts(gathering *g) {
    const int size = g->place->size;
    int n_nodes = 0;
    for (int rank = 0; rank < size; rank++) {
        rank_link *link = &g->links[rank];
        link->rank = rank;
        link->node = -1;
        for (int other = 0; other < rank && link->node < 0; other++)
            if (strcmp(g->host_ids[other], g->host_ids[rank]) == 0) link->node = g->links[other].node;
        if (link->node < 0) link->node = n_nodes++;
        link->local_rank = 0;
        for (int other = 0; other < rank; other++) link->local_rank += g->links[other].node == link->node;
    }
    for (int rank = 0; rank < size; rank++)
        for (int other = 0; other < size; other++)
            g->links[rank].local_size += g->links[other].node == g->links[rank].node;
}

static int gather(const rank_place *place, rank_link *self, rank_link *links, flute_error *err) {
    flute_error local = {0};
    int listener = place->listener, code = FLUTE_OK;
    gathering g = {.place = place, .links = links, .host_ids = calloc((size_t)place->size, sizeof(host_id))};
    if (!g.host_ids) return fail_memory(err, (size_t)place->size * sizeof(host_id), "ranks");
    introduce(place, &g.own);
    memcpy(g.host_ids[0], g.own.host_id, sizeof g.own.host_id);
    for (int rank = 0; rank < place->size; rank++) links[rank] = (rank_link){.command = -1, .watch = -1};
    if (listener < 0) code = listen_at(place, &listener, &local);
    if (!code) code = receive_all(&g, listener, &local);
    close_socket(&listener);
    if (!code) number_hosts(&g);
    free(g.host_ids);
    for (int rank = 1; rank < place->size; rank++) {
        rank_link *link = &links[rank];
        const welcome w = {
            .node = link->node, .local_rank = link->local_rank, .local_size = link->local_size};
        if (code && link->command >= 0) refuse(link->command, &local);
        if (!code && socket_send(link->command, &w, sizeof w))
            code = fail(&local, FLUTE_EIO, "rank %d (pid %ld on %s) left before the start", rank, link->pid,
                        link->host);
    }
    if (code) {
        for (int rank = 1; rank < place->size; rank++) {
            close_socket(&links[rank].command);
            close_socket(&links[rank].watch);
        }
        return fail(err, code, "%s", local.message);
    }
    *self = links[0];
    self->pid = (long)getpid();
    memcpy(self->host, g.own.host, sizeof self->host);
    return FLUTE_OK;
}

// ---- The others

// Connects, trying again until rank 0 listens.
static int connect_to(const rank_place *place, double deadline, int *out, flute_error *err) {
    struct addrinfo *addresses;
    int code = resolve(place, 0, &addresses, err), error = 0;
    if (code) return code;
    do {
        for (const struct addrinfo *at = addresses; at; at = at->ai_next) {
            *out = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (*out >= 0 && connect(*out, at->ai_addr, at->ai_addrlen) == 0) {
                freeaddrinfo(addresses);
                set_options(*out);
                return FLUTE_OK;
            }
            error = errno;
            close_socket(out);
        }
        const struct timespec nap = {.tv_nsec = 50 * 1000 * 1000};
        nanosleep(&nap, NULL);
    } while (seconds_now() < deadline);
    freeaddrinfo(addresses);
    return fail(err, FLUTE_EIO, "rank %d found no rank 0 at %s port %d within %d s: %s", place->rank,
                place->address, place->port, place->timeout_s, strerror(error));
}

static int join(const rank_place *place, rank_link *self, rank_link *link, flute_error *err) {
    const double deadline = seconds_now() + place->timeout_s;
    welcome w = {0};
    hello h;
    introduce(place, &h);
    *link = (rank_link){.command = -1, .watch = -1};
    int code = connect_to(place, deadline, &link->command, err);
    if (!code) code = connect_to(place, deadline, &link->watch, err);
    if (code) goto error;
    h.channel = CHANNEL_COMMAND;
    int gone = socket_send(link->command, &h, sizeof h);
    h.channel = CHANNEL_WATCH;
    if (!gone) gone = socket_send(link->watch, &h, sizeof h);
    set_timeout(link->command, place->timeout_s + 2); // rank 0 gives up first, and says who is missing
    if (gone || socket_receive(link->command, &w, sizeof w)) {
        code = fail(err, FLUTE_EIO, "rank %d: rank 0 at %s port %d did not answer", place->rank,
                    place->address, place->port);
        goto error;
    }
    set_timeout(link->command, 0);
    if (w.code) {
        code = fail(err, FLUTE_ECANCELED, "rank 0 gave up: %.399s", w.message);
        goto error;
    }
    *self = (rank_link){.command = -1,
                        .watch = -1,
                        .rank = place->rank,
                        .pid = (long)h.pid,
                        .node = w.node,
                        .local_rank = w.local_rank,
                        .local_size = w.local_size};
    memcpy(self->host, h.host, sizeof self->host);
    return FLUTE_OK;
error:
    close_socket(&link->command);
    close_socket(&link->watch);
    return code;
}

int rendezvous(const rank_place *place, rank_link *self, rank_link *links, flute_error *err) {
    return place->rank == 0 ? gather(place, self, links, err) : join(place, self, links, err);
}
