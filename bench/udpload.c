/* Bounded UDP load on loopback.
 *
 *   udpload PORT DATAGRAMS BYTES PER_SECOND MAX_SECONDS
 *       DATAGRAMS datagrams of BYTES bytes, each beginning with its number, at the given pace; PER_SECOND 0
 *       sends them as one burst, as fast as sendmmsg goes.
 *       sent=N fail=N seconds=S                fail: those the kernel did not take, or time did not allow
 *
 * The numbers sent are 0 to sent-1.   Build: cc -O2 -Wall -Wextra -o udpload udpload.c
 */
#define _GNU_SOURCE
#include "load.h"
#include <errno.h>

#define BATCH 64                /* datagrams a sendmmsg in a burst */
#define PACED_BATCH 16          /* and with a pace: few, so that the pace is even, but not a sleep a datagram */
#define MAX_ERRORS 1000         /* a server that is not there must not keep us here */

static char *payloads[BATCH];
static struct mmsghdr messages[BATCH];
static struct iovec pieces[BATCH];

static void prepare(int len) {
    for (int i = 0; i < BATCH; i++) {
        payloads[i] = make_payload(len);
        pieces[i] = (struct iovec){.iov_base = payloads[i], .iov_len = (size_t)len};
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: udpload PORT DATAGRAMS BYTES PER_SECOND MAX_SECONDS\n");
        return 2;
    }
    struct sockaddr_in server = loopback((int)number_arg(argv[1], "PORT", 1, 65535));
    long total = number_arg(argv[2], "DATAGRAMS", 1, 99999999), sent = 0;
    int len = (int)number_arg(argv[3], "BYTES", NUMBER_LEN, MAX_PAYLOAD);
    double pace = (double)number_arg(argv[4], "PER_SECOND", 0, 10000000);
    double limit = (double)number_arg(argv[5], "MAX_SECONDS", 1, 3600);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), errors = 0;
    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server) < 0) {
        perror("udpload");
        return 1;
    }
    prepare(len);
    double begin = now();
    while (sent < total && errors < MAX_ERRORS && now() - begin < limit) {
        long batch = pace > 0 ? PACED_BATCH : BATCH;
        if (batch > total - sent) batch = total - sent;
        while (pace > 0 && now() < begin + (double)sent / pace) usleep(50);
        for (long i = 0; i < batch; i++) put_number(payloads[i], sent + i);
        int n = sendmmsg(fd, messages, (unsigned)batch, 0);
        /* An error (an ICMP answer to an earlier datagram, full buffers) sends nothing: the same numbers again. */
        if (n < 0) errors++;
        else sent += n;
    }
    printf("sent=%ld fail=%ld seconds=%.6f\n", sent, total - sent, now() - begin);
    return sent == total ? 0 : 1;
}
