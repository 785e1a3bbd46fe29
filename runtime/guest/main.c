/* Process 1 of the guest: one loop over the virtio ports, the dyno's streams and the dead. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define CHANNELS 32
#define DRAIN_SECONDS 2 /* that an ended dyno's last words may take when nobody reads its FIFOs */

/* One way out: from the command's pipe or terminal into OUTPUT/ERRORS frames, or straight to a virtio port. */
struct flow {
    int from, to; /* `to` < 0: frames of `type` */
    uint8_t type;
    uint8_t held[32768];
    size_t begin, end;
};

struct channel {
    int used, number, terminal, in, in_over, ended, code;
    pid_t pid;
    struct flow out, err;
    uint32_t window; /* bytes that may still be sent before the host has taken some */
    uint8_t *input;
    size_t input_used;
    double since;
};

enum { WAITING, RUNNING, OVER };

static struct channel channels[CHANNELS];
static int port_out = -1, port_err = -1, signals = -1;
static int state = WAITING;
static struct { int32_t status; uint8_t oom; } __attribute__((packed)) outcome = {-1, 0};
static double started;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct channel *find(int number) {
    for (int i = 0; i < CHANNELS; i++)
        if (channels[i].used && channels[i].number == number) return &channels[i];
    return NULL;
}

static void close_flow(struct flow *flow) {
    if (flow->from >= 0) close(flow->from);
    flow->from = -1;
}

static void drop(struct channel *channel) {
    if (channel->in >= 0 && channel->in != channel->out.from) close(channel->in);
    close_flow(&channel->out);
    close_flow(&channel->err);
    free(channel->input);
    memset(channel, 0, sizeof *channel);
}

static void say(uint8_t type, int number, const char *text) { frames_send(type, (uint16_t)number, text, (uint32_t)strlen(text)); }

/* ---- starting */

static struct channel *vacant(void) {
    for (int i = 0; i < CHANNELS; i++)
        if (!channels[i].used) return &channels[i];
    return NULL;
}

static void open_channel(struct channel *channel, int number, pid_t pid, const struct spec *spec, const struct streams *streams) {
    memset(channel, 0, sizeof *channel);
    int framed = spec->terminal || spec->streams || number;
    channel->used = 1, channel->number = number, channel->pid = pid, channel->terminal = spec->terminal;
    channel->in = streams->in, channel->window = WINDOW;
    channel->out.from = streams->out, channel->out.type = OUTPUT, channel->out.to = framed ? -1 : port_out;
    channel->err.from = streams->err, channel->err.type = ERRORS, channel->err.to = framed ? -1 : port_err;
}

static void start(int number) {
    struct spec *spec = spec_take((uint16_t)number);
    struct streams streams = {-1, -1, -1};
    char why[256] = "its description is malformed";
    const char *problem = spec && state == WAITING ? NULL : why;
    pid_t pid = -1;
    if (!problem) {
        boot_apply(&(struct spec){.clock = spec->clock});
        boot_cgroup(spec->memory, spec->pids);
        problem = boot_root(spec);
    }
    if (!problem) problem = boot_network(spec);
    if (!problem) {
        pid = run_dyno(spec, &streams, why, sizeof why);
        if (pid < 0) problem = why;
    }
    if (problem) {
        say(FAILED, number, problem);
    } else {
        open_channel(vacant(), 0, pid, spec, &streams); /* it is the first */
        state = RUNNING, started = now();
        say(STARTED, number, "");
    }
    spec_free(spec);
}

static void further(int number) {
    struct spec *spec = spec_take((uint16_t)number);
    struct streams streams = {-1, -1, -1};
    char why[256] = "the dyno does not run";
    struct channel *dyno = find(0), *channel = vacant();
    pid_t pid = -1;
    if (spec) spec->streams = 1;
    if (!channel) snprintf(why, sizeof why, "%d commands run in it, as many as can", CHANNELS - 1);
    else if (spec && number && !find(number) && state == RUNNING && dyno)
        pid = run_further(dyno->pid, spec, &streams, why, sizeof why);
    if (pid < 0) {
        say(FAILED, number, why);
    } else {
        open_channel(channel, number, pid, spec, &streams);
        say(STARTED, number, "");
    }
    spec_free(spec);
}

/* ---- what the host says */

static void send_signal(struct channel *channel, const uint8_t *payload) {
    int number = payload[0], everyone = payload[1];
    if (!channel || channel->ended || number < 1 || number > 64) return;
    if (!channel->number && everyone && number == SIGTERM) kill(channel->pid, ASK_ALL);
    else if (!channel->number && everyone && number != SIGKILL) run_everyone(channel->pid, number);
    else if (channel->number && everyone) kill(-channel->pid, number), kill(channel->pid, number);
    else kill(channel->pid, number);
}

static void write_input(struct channel *channel) {
    size_t done = 0;
    while (channel->in >= 0 && done < channel->input_used) {
        ssize_t count = write(channel->in, channel->input + done, channel->input_used - done);
        if (count < 0 && errno == EAGAIN) break;
        if (count <= 0) { /* nobody reads: the rest is as good as taken */
            done = channel->input_used;
            break;
        }
        done += (size_t)count;
    }
    if (channel->in < 0) done = channel->input_used;
    if (done) {
        uint32_t taken = (uint32_t)done;
        memmove(channel->input, channel->input + done, channel->input_used -= done);
        frames_send(ACCEPTED, (uint16_t)channel->number, &taken, sizeof taken);
    }
    if (!channel->input_used && channel->in_over && channel->in >= 0 && !channel->terminal) {
        close(channel->in);
        channel->in = -1;
    }
}

static void add_input(struct channel *channel, const uint8_t *payload, uint32_t length) {
    if (!channel) return;
    if (!length) channel->in_over = 1;
    if (channel->input_used + length > 2 * WINDOW) return;
    uint8_t *more = length ? realloc(channel->input, channel->input_used + length) : NULL;
    if (more) {
        memcpy(more + channel->input_used, payload, length);
        channel->input = more, channel->input_used += length;
    }
    write_input(channel);
}

static void resize(struct channel *channel, const uint8_t *payload) {
    if (!channel || !channel->terminal) return;
    uint16_t rows, columns;
    memcpy(&rows, payload, 2), memcpy(&columns, payload + 2, 2);
    struct winsize size = {rows, columns, 0, 0};
    ioctl(channel->out.from, TIOCSWINSZ, &size);
}

/* Who connects anew knows of no further command: those of an earlier host end are hung up, as a container's are. */
static void hang_up(void) {
    for (int i = 0; i < CHANNELS; i++) {
        struct channel *channel = &channels[i];
        if (!channel->used || !channel->number) continue;
        if (!channel->ended) kill(-channel->pid, SIGHUP), kill(channel->pid, SIGHUP);
        drop(channel);
    }
}

static void synced(const uint8_t *nonce) {
    uint8_t answer[16 + 12] = {0};
    uint32_t protocol = PROTOCOL;
    memcpy(answer, nonce, 16);
    memcpy(answer + 16, &protocol, 4);
    answer[20] = (uint8_t)state;
    memcpy(answer + 21, &outcome, sizeof outcome);
    hang_up();
    frames_connected(1);
    frames_send(SYNCED, 0, answer, sizeof answer);
    if (state == RUNNING) look_listeners(1), look_figures();
}

static void take(const struct frame *head, const uint8_t *payload) {
    struct channel *channel = find(head->channel);
    uint64_t limits[3];
    uint32_t taken;
    struct spec *spec;
    switch (head->type) {
    case SYNC: if (head->length == 16) synced(payload); break;
    case SPEC: spec_add(head->channel, payload, head->length); break;
    case START: start(head->channel); break;
    case EXEC: further(head->channel); break;
    case SIGNAL: if (head->length == 2) send_signal(channel, payload); break;
    case INPUT: add_input(channel, payload, head->length); break;
    case RESIZE: if (head->length == 4) resize(channel, payload); break;
    case TAKEN:
        if (head->length == 4 && channel) memcpy(&taken, payload, 4), channel->window += taken;
        break;
    case LIMITS: /* memory, pids, processors; 0 leaves one as it is */
        if (head->length != sizeof limits) break;
        memcpy(limits, payload, sizeof limits);
        boot_cgroup(limits[0], limits[1]);
        if (limits[2]) boot_processors((uint32_t)limits[2]);
        frames_send(DONE, head->channel, NULL, 0);
        break;
    case APPLY:
        spec = spec_take(head->channel);
        if (spec) boot_apply(spec);
        spec_free(spec);
        frames_send(DONE, head->channel, NULL, 0);
        break;
    case LOOK: look_listeners(1), look_figures(), frames_send(DONE, head->channel, NULL, 0); break;
    case CLOSE: if (channel && channel->number) kill(-channel->pid, SIGKILL), kill(channel->pid, SIGKILL); break;
    }
}

/* ---- streams */

/* Moves what it can; whether there is nothing more to move now. */
static int pump(struct channel *channel, struct flow *flow) {
    for (;;) {
        while (flow->begin < flow->end) {
            size_t count = flow->end - flow->begin;
            if (flow->to >= 0) {
                ssize_t written = write(flow->to, flow->held + flow->begin, count);
                if (written <= 0) return 0;
                flow->begin += (size_t)written;
            } else {
                if (!channel->window || frames_waiting() > WINDOW) return 0;
                if (count > channel->window) count = channel->window;
                frames_send(flow->type, (uint16_t)channel->number, flow->held + flow->begin, (uint32_t)count);
                channel->window -= (uint32_t)count;
                flow->begin += count;
            }
        }
        if (flow->from < 0) return 1;
        ssize_t count = read(flow->from, flow->held, sizeof flow->held);
        if (count < 0 && errno == EAGAIN) return 1;
        if (count <= 0) {
            if (channel->terminal && !channel->ended) return 1; /* one that nobody has open may be opened again */
            if (channel->terminal) channel->in = -1;             /* it is the same descriptor */
            close_flow(flow);
            return 1;
        }
        flow->begin = 0, flow->end = (size_t)count;
    }
}

static int flushed(int fd) {
    struct pollfd poll_fd = {fd, POLLOUT, 0};
    return fd < 0 || (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & POLLOUT);
}

static int status_of(int code) { return code < 0 ? 128 + SIGKILL : WIFSIGNALED(code) ? 128 + WTERMSIG(code) : WEXITSTATUS(code); }

static void finish(struct channel *channel) {
    int dry = pump(channel, &channel->out) & pump(channel, &channel->err);
    int direct = channel->out.to >= 0;
    if (direct) dry = dry && flushed(port_out) && flushed(port_err);
    if (!dry && !(direct && now() > channel->since + DRAIN_SECONDS)) return;
    int32_t status = status_of(channel->code);
    struct { int32_t status; uint8_t oom; } __attribute__((packed)) told = {status, 0};
    if (!channel->number) {
        look_figures();
        told.oom = status == 128 + SIGKILL && look_ooms() > 0;
        outcome.status = status, outcome.oom = told.oom;
        state = OVER;
    }
    frames_send(EXITED, (uint16_t)channel->number, &told, sizeof told);
    drop(channel);
}

static void bury(void) {
    struct signalfd_siginfo info;
    int code;
    pid_t pid;
    while (read(signals, &info, sizeof info) == sizeof info) {}
    while ((pid = waitpid(-1, &code, WNOHANG)) > 0)
        for (int i = 0; i < CHANNELS; i++)
            if (channels[i].used && channels[i].pid == pid && !channels[i].ended) {
                channels[i].ended = 1, channels[i].since = now();
                channels[i].code = channels[i].number ? code : run_status();
            }
}

static void work(void) {
    struct pollfd fds[3 + 4 * CHANNELS];
    int count = 0, ending = 0;
    fds[count++] = (struct pollfd){signals, POLLIN, 0};
    int port = frames_are_connected() ? count++ : -1;
    if (port >= 0) fds[port] = (struct pollfd){frames_port(), (short)(POLLIN | (frames_waiting() ? POLLOUT : 0)), 0};
    for (int i = 0; i < CHANNELS; i++) {
        struct channel *channel = &channels[i];
        if (!channel->used) continue;
        ending |= channel->ended;
        for (int which = 0; which < 2; which++) {
            struct flow *flow = which ? &channel->err : &channel->out;
            if (flow->begin < flow->end && flow->to >= 0) fds[count++] = (struct pollfd){flow->to, POLLOUT, 0};
            else if (flow->begin == flow->end && flow->from >= 0 && !channel->ended)
                fds[count++] = (struct pollfd){flow->from, POLLIN, 0};
        }
        if (channel->in >= 0 && channel->input_used) fds[count++] = (struct pollfd){channel->in, POLLOUT, 0};
    }
    int young = state == RUNNING && now() < started + 60;
    poll(fds, (nfds_t)count, ending ? 5 : port < 0 ? 50 : young ? 50 : 1000);
    if (port >= 0 && fds[port].revents & POLLHUP && !(fds[port].revents & POLLIN)) frames_connected(0);
    if (port < 0) {
        struct pollfd again = {frames_port(), POLLIN, 0};
        poll(&again, 1, 0);
        if (!(again.revents & POLLHUP) || again.revents & POLLIN) frames_connected(1);
    }
    frames_read(take);
    frames_write();
    bury();
    for (int i = 0; i < CHANNELS; i++) {
        struct channel *channel = &channels[i];
        if (!channel->used) continue;
        if (channel->input_used || channel->in_over) write_input(channel);
        if (channel->ended) finish(channel);
        else pump(channel, &channel->out), pump(channel, &channel->err);
    }
}

static void tune(void) {
    put("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    put("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    put("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    put("/proc/sys/user/max_user_namespaces", "0");
    put("/proc/sys/kernel/dmesg_restrict", "1");
    put("/proc/sys/kernel/core_pattern", "|/bin/false");
    put("/proc/sys/vm/panic_on_oom", "0");
    put("/proc/sys/kernel/unprivileged_bpf_disabled", "1");
    put("/proc/self/oom_score_adj", "-1000");
}

int main(void) {
    sigset_t all;
    double last = 0, pressed = 0;
    mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    boot_modules();
    tune();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&all);
    sigaddset(&all, SIGCHLD);
    signals = signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
    frames_open(boot_port("davit.ctl", O_RDWR | O_NONBLOCK));
    port_out = boot_port("davit.out", O_WRONLY | O_NONBLOCK);
    port_err = boot_port("davit.err", O_WRONLY | O_NONBLOCK);
    frames_connected(1);
    for (;;) {
        work();
        if (state == RUNNING && now() > pressed + 1) pressed = now(), look_pressure();
        if (state != RUNNING || !frames_are_connected()) continue;
        look_listeners(0);
        if (now() > last + 5) last = now(), look_figures();
    }
}
