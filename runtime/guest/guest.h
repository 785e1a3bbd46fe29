/* Davit's guest agent: process 1 of a microVM. It brings the dyno up inside the guest as a container is brought up on a
 * host, and speaks with the runtime process over a virtio port. runtime/microvm/protocol.py is the other end. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROTOCOL 1
#define CHUNK 65536   /* bytes that a frame carries at the most */
#define WINDOW 262144 /* bytes that may be under way in one direction of a channel before the other side says it took some */
#define USER 1000     /* the dyno's user */

/* ---- frames (frames.c) */

enum host_says { SYNC = 1, SPEC, START, EXEC, SIGNAL, INPUT, RESIZE, TAKEN, LIMITS, APPLY, LOOK, CLOSE };
enum guest_says { SYNCED = 1, STARTED, FAILED, OUTPUT, ERRORS, EXITED, LISTENERS, FIGURES, ACCEPTED, DONE };

struct frame {
    uint32_t magic;
    uint8_t type, spare;
    uint16_t channel;
    uint32_t length;
} __attribute__((packed));

void frames_open(int port);
int frames_port(void);
/* Whether somebody is connected at the other end (POLLHUP says no). */
void frames_connected(int yes);
int frames_are_connected(void);
void frames_send(uint8_t type, uint16_t channel, const void *payload, uint32_t length);
size_t frames_waiting(void);
void frames_write(void);
/* Reads what is there and calls `take` for each whole frame. */
void frames_read(void (*take)(const struct frame *, const uint8_t *));

/* ---- what a command is to be (spec.c) */

struct spec {
    char **argv, **env;
    int argc, envc;
    char *hostname, *hosts, *resolv, *certificates, *address, *gateway, *shm;
    uint8_t mac[6];
    int has_mac, readonly, streams, terminal;
    uint16_t rows, columns;
    uint64_t memory, pids, clock;
};

void spec_add(uint16_t channel, const uint8_t *bytes, uint32_t length);
/* The spec that arrived on a channel; the caller frees it with spec_free. NULL when it is malformed. */
struct spec *spec_take(uint16_t channel);
void spec_free(struct spec *);

/* ---- the guest (boot.c) */

void boot_modules(void);
int boot_port(const char *name, int flags);
const char *boot_root(const struct spec *); /* NULL, or why the dyno's file system could not be made */
const char *boot_network(const struct spec *);
void boot_apply(const struct spec *); /* address, names and clock anew, after a resume */
void boot_cgroup(uint64_t memory, uint64_t pids);
void boot_processors(uint32_t count);
int put(const char *path, const char *text);

/* ---- connections (connections.c) */

void connections_end(void); /* all that the dyno has with others than itself */

/* ---- processes (run.c) */

struct streams {
    int in, out, err; /* this side's ends; a terminal has one for all, in `in` and `out` */
};

/* The signal by which a dyno's init asks everybody to end, and stays until the last has. */
#define ASK_ALL SIGRTMIN

pid_t run_dyno(const struct spec *, struct streams *, char *why, size_t size);
pid_t run_further(pid_t init, const struct spec *, struct streams *, char *why, size_t size);
int run_status(void); /* the dyno's wait status as its init told it; -1 when it did not */
void run_everyone(pid_t init, int number);

/* ---- looking (look.c) */

void look_listeners(int always);
void look_figures(void);
uint64_t look_ooms(void);
void look_pressure(void);

#endif
