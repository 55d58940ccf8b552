/* Bounded TLS load on loopback.
 *
 *   tlsload PORT SESSIONS CONCURRENT BYTES SOURCES MAX_SECONDS
 *       SESSIONS full handshakes, CONCURRENT at a time, from SOURCES addresses. A session connects, shakes
 *       hands, sends BYTES bytes that begin with its number, sends close_notify, shuts its sending side down,
 *       reads until the server closes, and closes. Nothing is resumed.
 *       sent=N done=N fail=N seconds=S         done: the server closed in good order
 *
 * The certificate is not verified: the harness signs it itself. The handshake's signature is, as in every
 * TLS client.   Build: cc -O2 -Wall -Wextra -o tlsload tlsload.c -lssl -lcrypto
 */
#define _GNU_SOURCE
#include "load.h"
#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/epoll.h>

enum step { CONNECTING, SHAKING_HANDS, CLOSING };

struct session { int fd; enum step step; SSL *ssl; unsigned waits_for; };

static int epoll_fd;
static long sessions, sources, payload_len;
static long started, numbered, done, failed;
static char *payload;
static struct sockaddr_in server;
static SSL_CTX *context;

static int open_session(struct session *s) {
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = s};
    int fd = source_socket(SOCK_NONBLOCK, started++ % sources);
    if (fd < 0) return -1;
    if ((connect(fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        close(fd);
        return -1;
    }
    *s = (struct session){.fd = fd, .step = CONNECTING, .waits_for = EPOLLOUT};
    return 0;
}

static void refill(struct session *s) {
    while (started < sessions && open_session(s) < 0) failed++;
}

static int wait_for(struct session *s, unsigned what) {
    struct epoll_event event = {.events = what, .data.ptr = s};
    if (s->waits_for == what) return 0;
    s->waits_for = what;
    return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &event);
}

/* What OpenSSL wants before it goes on: 0 when it wants something, -1 when it is an error. */
static int wait_for_ssl(struct session *s, int result) {
    int error = SSL_get_error(s->ssl, result);
    if (error == SSL_ERROR_WANT_READ) return wait_for(s, EPOLLIN);
    if (error == SSL_ERROR_WANT_WRITE) return wait_for(s, EPOLLOUT);
    return -1;
}

static int begin_handshake(struct session *s) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) return -1;
    s->ssl = SSL_new(context);
    if (!s->ssl || !SSL_set_fd(s->ssl, s->fd)) return -1;
    SSL_set_connect_state(s->ssl);
    s->step = SHAKING_HANDS;
    return 0;
}

static int send_payload(struct session *s) {
    put_number(payload, numbered++);
    if (SSL_write(s->ssl, payload, (int)payload_len) != payload_len) return -1;
    if (SSL_shutdown(s->ssl) < 0 || shutdown(s->fd, SHUT_WR) < 0) return -1;
    s->step = CLOSING;
    return wait_for(s, EPOLLIN);
}

/* Below the TLS layer, for after our close_notify only the end of the stream matters: some servers answer
 * with a close_notify, some just close. */
static int read_until_closed(struct session *s) {
    char reply[4096];
    ssize_t n;
    do n = read(s->fd, reply, sizeof reply);
    while (n > 0);
    if (n == 0) return 1;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

/* 1: finished well, -1: failed, 0: goes on. */
static int advance(struct session *s) {
    int result;
    if (s->step == CLOSING) return read_until_closed(s);
    if (s->step == CONNECTING && begin_handshake(s) < 0) return -1;
    ERR_clear_error();
    result = SSL_do_handshake(s->ssl);
    return result == 1 ? send_payload(s) : wait_for_ssl(s, result);
}

static void finish(struct session *s, int result) {
    if (result > 0) done++; else failed++;
    /* Tells OpenSSL not to mind that its half of the closing was not read by it. */
    if (s->ssl) SSL_set_shutdown(s->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(s->ssl);
    close(s->fd);
    refill(s);
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    if (argc != 7) {
        fprintf(stderr, "usage: tlsload PORT SESSIONS CONCURRENT BYTES SOURCES MAX_SECONDS\n");
        return 2;
    }
    server = loopback((int)number_arg(argv[1], "PORT", 1, 65535));
    sessions = number_arg(argv[2], "SESSIONS", 1, 99999999);
    long concurrent = number_arg(argv[3], "CONCURRENT", 1, 10000);
    payload_len = number_arg(argv[4], "BYTES", NUMBER_LEN, 16384);      /* one TLS record */
    sources = number_arg(argv[5], "SOURCES", 1, 65000);
    double limit = (double)number_arg(argv[6], "MAX_SECONDS", 1, 3600);
    payload = make_payload((int)payload_len);
    signal(SIGPIPE, SIG_IGN);
    context = SSL_CTX_new(TLS_client_method());
    struct session *all = calloc((size_t)concurrent, sizeof *all);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!context || !all || epoll_fd < 0) return 2;
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    double begin = now();
    for (long i = 0; i < concurrent; i++) refill(&all[i]);
    while (done + failed < sessions && now() - begin < limit) {
        int ready = epoll_wait(epoll_fd, events, 256, 1000);
        for (int i = 0; i < ready; i++) {
            struct session *s = events[i].data.ptr;
            int result = advance(s);
            if (result) finish(s, result);
        }
    }
    double seconds = now() - begin;
    printf("sent=%ld done=%ld fail=%ld seconds=%.6f\n", numbered, done, sessions - done, seconds);
    return done == sessions ? 0 : 1;
}
