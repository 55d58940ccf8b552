/* What the three load generators share: a clock, loopback addresses, and the numbered payload.
 *
 * Everything here goes to 127.0.0.1 and comes from 127.0.0.0/8, so that a generator can't be pointed at
 * anybody else.
 */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NUMBER_LEN 8            /* each payload begins with its session's number, in so many digits */
#define MAX_PAYLOAD 65000       /* fits in one datagram and in one write to an empty socket buffer */

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* A TCP socket bound to the k-th source address, 127.0.0.2 being the first; -1 when it can't be had.
 * The port is left to connect(): only then may two sockets with different ends share one. */
static inline int source_socket(int flags, long k) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    struct sockaddr_in from = {.sin_family = AF_INET};
    if (fd < 0) return -1;
    from.sin_addr.s_addr = htonl(0x7f000002u + (unsigned)k);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0) return fd;
    close(fd);
    return -1;
}

static inline char *make_payload(int len) {
    char *payload = malloc((size_t)len);
    if (!payload) exit(2);
    memset(payload, 'A', (size_t)len);
    return payload;
}

static inline void put_number(char *payload, long number) {
    for (int i = NUMBER_LEN - 1; i >= 0; i--, number /= 10) payload[i] = (char)('0' + number % 10);
}

/* The argument as a number between the bounds; anything else ends the program with one line and code 2. */
static inline long number_arg(const char *text, const char *name, long least, long most) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*text && !*end && value >= least && value <= most) return value;
    fprintf(stderr, "%s must be a whole number from %ld to %ld, not '%s'\n", name, least, most, text);
    exit(2);
}

#endif
