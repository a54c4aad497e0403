// How ranks find each other: rank 0 listens at an address that all know, the others come to it, and those
// that do not belong are turned away. Afterwards rank 0 has two connections to each of the others: one for
// commands, and one that tells when either end is gone.
#ifndef FLUTE_RENDEZVOUS_H
#define FLUTE_RENDEZVOUS_H

#include <stddef.h>

#include "engine/base/error.h"

enum { RANKS_MAX = 1024 };

typedef struct rank_place {
    int rank, size;
    char address[256]; // of rank 0
    int port;
    int listener;  // of rank 0: a socket that listens there already, or −1
    int timeout_s; // for all to come
} rank_place;

// A connection to another rank.
typedef struct rank_link {
    int command, watch; // sockets; −1: none
    int rank;
    long pid;
    char host[64];
    int node;       // ranks of one host have the same one; rank 0 is on node 0
    int local_rank; // number among the ranks of its host
    int local_size; // ranks on its host
} rank_link;

// Blocks until all have come. *self receives what is known of this rank (no sockets). links: rank 0 gets
// (size), the first one unused; the others get one, to rank 0. On failure there are no links. FLUTE_ECANCELED
// at another rank than 0: rank 0 knows why, and says so.
int rendezvous(const rank_place *place, rank_link *self, rank_link *links, flute_error *err);

// A socket that listens on a free port of the loopback interface, for ranks of this host.
int rendezvous_listen_local(int *listener, int *port, flute_error *err);

// Whole messages over a socket. 0, or −1 when the other end is gone.
int socket_send(int socket, const void *data, size_t size);
int socket_receive(int socket, void *data, size_t size);

#endif
