/* The dyno's connections after the guest has woken elsewhere: nobody knows them any more, and Linux ends none of them for that. */
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STATE_CLOSE = 7, STATE_LISTEN = 10 }; /* of TCP, as include/net/tcp_states.h numbers them */

static int is_loopback(const struct sockaddr_storage *name) {
    const struct in6_addr *six = &((const struct sockaddr_in6 *)name)->sin6_addr;
    uint32_t four = ((const struct sockaddr_in *)name)->sin_addr.s_addr;
    if (name->ss_family == AF_INET6 && !IN6_IS_ADDR_V4MAPPED(six)) return IN6_IS_ADDR_LOOPBACK(six);
    if (name->ss_family == AF_INET6) memcpy(&four, six->s6_addr + 12, sizeof four);
    return ntohl(four) >> 24 == 127;
}

static void end(int s) {
    struct tcp_info info = {0};
    struct sockaddr_storage name = {0};
    socklen_t size = sizeof info, named = sizeof name;
    if (getsockopt(s, IPPROTO_TCP, TCP_INFO, &info, &size) || getsockname(s, (struct sockaddr *)&name, &named)) return;
    if (info.tcpi_state == STATE_CLOSE || info.tcpi_state == STATE_LISTEN || is_loopback(&name)) return;
    struct linger none = {0, 0}; /* if this process is the last that closes it, it must not wait for an answer */
    setsockopt(s, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    shutdown(s, SHUT_RDWR); /* whoever reads is told that it is over, whoever writes gets EPIPE */
}

static void end_those_of(const char *pid) {
    char path[64], target[32];
    struct dirent *entry;
    int process = (int)syscall(SYS_pidfd_open, atoi(pid), 0);
    snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
    DIR *dir = process < 0 ? NULL : opendir(path);
    while (dir && (entry = readdir(dir))) {
        ssize_t length = readlinkat(dirfd(dir), entry->d_name, target, sizeof target);
        if (length < 8 || memcmp(target, "socket:[", 8)) continue;
        int s = (int)syscall(SYS_pidfd_getfd, process, atoi(entry->d_name), 0);
        if (s < 0) continue;
        end(s);
        close(s);
    }
    if (dir) closedir(dir);
    if (process >= 0) close(process);
}

void connections_end(void) {
    struct dirent *entry;
    DIR *dir = opendir("/proc");
    while (dir && (entry = readdir(dir)))
        if (atoi(entry->d_name) > 1) end_those_of(entry->d_name);
    if (dir) closedir(dir);
}
