/* Bounded TCP load on loopback, in three modes. Each prints one line and ends within MAX_SECONDS.
 *
 *   tcpload load  PORT SESSIONS CONCURRENT BYTES SOURCES MAX_SECONDS
 *       SESSIONS sessions, CONCURRENT at a time, from SOURCES addresses. A session connects, sends BYTES bytes
 *       that begin with its number, shuts its sending side down, reads until the server closes, and closes.
 *       sent=N done=N fail=N seconds=S         done: the server closed in good order
 *   tcpload hold  PORT CONNECTIONS BYTES SOURCES MAX_SECONDS
 *       Opens CONNECTIONS connections, sends one numbered payload on each, and keeps them all open until
 *       standard input closes.
 *       held N fail N                          printed when all are up
 *   tcpload flood PORT MIB MAX_SECONDS
 *       One connection that sends MIB mebibytes as fast as the server takes them.
 *       sent=BYTES closed=0|1 seconds=S        closed: the server ended the connection before all was sent
 *
 * Build: cc -O2 -Wall -Wextra -o tcpload tcpload.c
 */
#define _GNU_SOURCE
#include "load.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/time.h>

#define FLOOD_WRITE (256 * 1024)

struct session { int fd, sent; };

static int epoll_fd;
static long sessions, sources, payload_len;
static long started, numbered, done, failed;
static char *payload;
static struct sockaddr_in server;

static int open_session(struct session *s) {
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = s};
    int fd = source_socket(SOCK_NONBLOCK, started++ % sources);
    if (fd < 0) return -1;
    if ((connect(fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        close(fd);
        return -1;
    }
    s->fd = fd;
    s->sent = 0;
    return 0;
}

/* Puts the next session into the slot; those that can't even be opened are counted and passed over. */
static void refill(struct session *s) {
    while (started < sessions && open_session(s) < 0) failed++;
}

static int send_payload(struct session *s) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) return -1;
    put_number(payload, numbered++);
    if (send(s->fd, payload, (size_t)payload_len, MSG_NOSIGNAL) != payload_len) return -1;
    if (shutdown(s->fd, SHUT_WR) < 0) return -1;
    s->sent = 1;
    return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &event);
}

/* 1: finished well, -1: failed, 0: goes on. */
static int advance(struct session *s) {
    char reply[4096];
    ssize_t n;
    if (!s->sent) return send_payload(s);
    n = read(s->fd, reply, sizeof reply);
    if (n == 0) return 1;
    return n > 0 || errno == EAGAIN || errno == EINTR ? 0 : -1;
}

static int run_load(char **argv) {
    struct epoll_event events[256];
    long concurrent = number_arg(argv[1], "CONCURRENT", 1, 10000);
    double begin, limit, seconds;
    sessions = number_arg(argv[0], "SESSIONS", 1, 99999999);
    payload_len = number_arg(argv[2], "BYTES", NUMBER_LEN, MAX_PAYLOAD);
    sources = number_arg(argv[3], "SOURCES", 1, 65000);
    limit = (double)number_arg(argv[4], "MAX_SECONDS", 1, 3600);
    payload = make_payload((int)payload_len);
    struct session *all = calloc((size_t)concurrent, sizeof *all);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!all || epoll_fd < 0) return 2;
    begin = now();
    for (long i = 0; i < concurrent; i++) refill(&all[i]);
    while (done + failed < sessions && now() - begin < limit) {
        int ready = epoll_wait(epoll_fd, events, 256, 1000);
        for (int i = 0; i < ready; i++) {
            struct session *s = events[i].data.ptr;
            int result = advance(s);
            if (!result) continue;
            if (result > 0) done++; else failed++;
            close(s->fd);
            refill(s);
        }
    }
    seconds = now() - begin;
    /* What the time limit cut off has failed too. */
    printf("sent=%ld done=%ld fail=%ld seconds=%.6f\n", numbered, done, sessions - done, seconds);
    return done == sessions ? 0 : 1;
}

static void set_timeout(int fd, double seconds) {
    struct timeval t = {.tv_sec = (time_t)seconds, .tv_usec = (suseconds_t)1};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

/* One after the other and blocking: a server that is behind with accept() slows this down by itself. */
static int run_hold(char **argv) {
    long connections = number_arg(argv[0], "CONNECTIONS", 1, 1000000), held = 0;
    double begin = now(), limit;
    payload_len = number_arg(argv[1], "BYTES", NUMBER_LEN, MAX_PAYLOAD);
    sources = number_arg(argv[2], "SOURCES", 1, 65000);
    limit = (double)number_arg(argv[3], "MAX_SECONDS", 1, 3600);
    payload = make_payload((int)payload_len);
    for (long i = 0; i < connections && now() - begin < limit; i++) {
        int fd = source_socket(0, i % sources);
        if (fd < 0) continue;
        set_timeout(fd, limit);
        if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0) {
            close(fd);
            continue;
        }
        put_number(payload, held);
        if (send(fd, payload, (size_t)payload_len, MSG_NOSIGNAL) == payload_len) held++;
        else close(fd);
    }
    printf("held %ld fail %ld\n", held, connections - held);
    fflush(stdout);
    for (double left; (left = limit - (now() - begin)) > 0;) {
        struct pollfd in = {.fd = 0, .events = POLLIN};
        char rest[256];
        if (poll(&in, 1, (int)(left * 1000) + 1) > 0 && read(0, rest, sizeof rest) <= 0) break;
    }
    return held == connections ? 0 : 1;
}

static int run_flood(char **argv) {
    long long total = (long long)number_arg(argv[0], "MIB", 1, 65536) << 20, sent = 0;
    double begin = now(), limit = (double)number_arg(argv[1], "MAX_SECONDS", 1, 3600);
    int fd = source_socket(0, 0), closed = 0;
    char reply[4096];
    payload = make_payload(FLOOD_WRITE);
    put_number(payload, 0);
    if (fd < 0) return 2;
    set_timeout(fd, limit);
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0) {
        perror("connect");
        return 1;
    }
    while (sent < total && now() - begin < limit) {
        size_t len = total - sent < FLOOD_WRITE ? (size_t)(total - sent) : FLOOD_WRITE;
        ssize_t n = send(fd, payload, len, MSG_NOSIGNAL);
        if (n < 0) {
            closed = errno == EPIPE || errno == ECONNRESET;
            break;
        }
        sent += n;
        memset(payload, 'A', NUMBER_LEN);
    }
    shutdown(fd, SHUT_WR);
    while (now() - begin < limit && read(fd, reply, sizeof reply) > 0) continue;
    printf("sent=%lld closed=%d seconds=%.6f\n", sent, closed, now() - begin);
    return sent == total || closed ? 0 : 1;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    int (*run)(char **) = NULL;
    if (!strcmp(mode, "load") && argc == 8) run = run_load;
    if (!strcmp(mode, "hold") && argc == 7) run = run_hold;
    if (!strcmp(mode, "flood") && argc == 5) run = run_flood;
    if (!run) {
        fprintf(stderr, "usage: tcpload load PORT SESSIONS CONCURRENT BYTES SOURCES MAX_SECONDS\n"
                        "       tcpload hold PORT CONNECTIONS BYTES SOURCES MAX_SECONDS\n"
                        "       tcpload flood PORT MIB MAX_SECONDS\n");
        return 2;
    }
    server = loopback((int)number_arg(argv[2], "PORT", 1, 65535));
    return run(argv + 3);
}
