// What the system itself takes to write a broadcast: send() of the same number of bytes to each of many TCP
// connections over loopback, while another process reads them. Prints nanoseconds of CPU per send().
//
//     send CONNECTIONS BYTES SECONDS APART READING SENDER_CORE READER_CORE
//
// APART is how many seconds after one broadcast the next one begins, at the earliest; 0: when all have had it. READING is
// how many seconds the reader takes for each message, at the least: one that is done at once and sleeps again has to be
// woken by the next send(), which pays for it. A core of -1 is any.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void stay_on(int core) {
    if (core < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set)) fail("sched_setaffinity");
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

// Connects, reads everything, and writes a byte into `done` whenever all connections have had one broadcast more.
static void read_all(struct sockaddr_in *address, int connections, long bytes, double reading, int done) {
    int poll = epoll_create1(0);
    for (int i = 0; i < connections; i++) {
        int file = socket(AF_INET, SOCK_STREAM, 0);
        if (file < 0 || connect(file, (struct sockaddr *)address, sizeof *address)) fail("connect");
        struct epoll_event event = {.events = EPOLLIN, .data.fd = file};
        epoll_ctl(poll, EPOLL_CTL_ADD, file, &event);
    }
    static char buffer[1 << 16];
    struct epoll_event events[256];
    long left = connections * bytes;
    for (;;) {
        int count = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            double done_at = seconds(CLOCK_MONOTONIC) + reading;
            long got = recv(events[i].data.fd, buffer, sizeof buffer, 0);
            if (got <= 0) exit(0);
            left -= got;
            while (reading > 0 && seconds(CLOCK_MONOTONIC) < done_at) continue;
        }
        if (left == 0) {
            left = connections * bytes;
            if (write(done, "", 1) != 1) exit(0);
        }
    }
}

static void sleep_until(double when) {
    struct timespec until = {.tv_sec = (time_t)when};
    until.tv_nsec = (long)((when - until.tv_sec) * 1e9);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) continue;
}

int main(int count, char **arguments) {
    if (count != 8) return 2;
    int connections = atoi(arguments[1]);
    long bytes = atol(arguments[2]);
    double runs_for = atof(arguments[3]), apart = atof(arguments[4]), reading = atof(arguments[5]);
    int listener = socket(AF_INET, SOCK_STREAM, 0), done[2];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 128) || pipe(done)) fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    if (!fork()) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        stay_on(atoi(arguments[7]));
        read_all(&address, connections, bytes, reading, done[1]);
    }
    stay_on(atoi(arguments[6]));
    int *files = calloc(connections, sizeof *files), on = 1;
    struct linger none = {.l_onoff = 1};
    for (int i = 0; i < connections; i++) {
        if ((files[i] = accept(listener, NULL, NULL)) < 0) fail("accept");
        setsockopt(files[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        // Ended, none waits in the system's tables for a minute: what is measured next would look past it.
        setsockopt(files[i], SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    char *frame = malloc(bytes), byte;
    memset(frame, 'x', bytes);
    double used = 0, end = seconds(CLOCK_MONOTONIC) + runs_for;
    long sent = -connections;  // the first broadcast is not counted: the connections are new
    while (seconds(CLOCK_MONOTONIC) < end || sent <= 0) {
        double began = seconds(CLOCK_MONOTONIC), before = seconds(CLOCK_PROCESS_CPUTIME_ID);
        for (int i = 0; i < connections; i++)
            if (send(files[i], frame, bytes, MSG_NOSIGNAL) != bytes) fail("send");
        if (sent >= 0) used += seconds(CLOCK_PROCESS_CPUTIME_ID) - before;
        sent += connections;
        if (read(done[0], &byte, 1) != 1) fail("read");  // one broadcast at a time
        if (apart > 0) sleep_until(began + apart);
    }
    printf("%.1f\n", used / sent * 1e9);
    return 0;
}
