/* The dyno's processes: process and mount namespaces of their own below this agent, uid 1000, no capability. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define ROOT "/n/root"

static int status_fd = -1;

struct plan {
    int child[3]; /* what becomes 0, 1 and 2 */
    int error[2]; /* the child says there why it could not exec; it is closed by exec */
};

static const struct plan no_plan = {{-1, -1, -1}, {-1, -1}};
static const struct streams no_streams = {-1, -1, -1};

static int make_pipe(int *read_end, int *write_end) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC)) return -1;
    *read_end = fds[0], *write_end = fds[1];
    /* programs open /dev/stdout again, and the kernel then looks at the pipe's owner */
    return fchown(fds[0], USER, USER) | fchown(fds[1], USER, USER);
}

static int open_terminal(const struct spec *spec, struct plan *plan, struct streams *mine) {
    char name[64];
    int number, unlock = 0, master = open(ROOT "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    mine->in = master, mine->out = master;
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &number)) return -1;
    struct winsize size = {spec->rows, spec->columns, 0, 0};
    ioctl(master, TIOCSWINSZ, &size);
    snprintf(name, sizeof name, ROOT "/dev/pts/%d", number);
    int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    plan->child[0] = plan->child[1] = plan->child[2] = slave;
    return slave < 0 || fchown(slave, USER, 5) ? -1 : 0;
}

static int open_streams(const struct spec *spec, struct plan *plan, struct streams *mine) {
    if (pipe2(plan->error, O_CLOEXEC)) return -1;
    if (spec->terminal) return open_terminal(spec, plan, mine);
    if (make_pipe(&mine->out, &plan->child[1]) || make_pipe(&mine->err, &plan->child[2])) return -1;
    if (spec->streams) return make_pipe(&plan->child[0], &mine->in);
    plan->child[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
    return 0;
}

static void close_child_ends(struct plan *plan) {
    for (int i = 0; i < 3; i++)
        if (plan->child[i] >= 0 && (!i || plan->child[i] != plan->child[0])) close(plan->child[i]);
    if (plan->error[1] >= 0) close(plan->error[1]);
    plan->child[0] = plan->child[1] = plan->child[2] = plan->error[1] = -1;
}

/* Nothing of a command that could not be started stays open. */
static pid_t give_up(struct plan *plan, struct streams *mine) {
    close_child_ends(plan);
    if (plan->error[0] >= 0) close(plan->error[0]);
    if (mine->in >= 0 && mine->in != mine->out) close(mine->in);
    if (mine->out >= 0) close(mine->out);
    if (mine->err >= 0) close(mine->err);
    *plan = no_plan, *mine = no_streams;
    return -1;
}

static void unblock_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void limit(int what, rlim_t soft, rlim_t hard) {
    struct rlimit both = {soft, hard};
    setrlimit(what, &both);
}

static void drop_powers(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    for (int cap = 0; cap < 64; cap++) prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    if (setgroups(0, NULL) || setresgid(USER, USER, USER) || setresuid(USER, USER, USER)) _exit(126);
    syscall(SYS_capset, &head, none);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* The command itself; does not return. */
static void become(const struct spec *spec, struct plan *plan) {
    int error = plan->error[1], problem;
    setsid();
    if (spec->terminal) ioctl(plan->child[0], TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) dup2(plan->child[i], i);
    put("/proc/self/oom_score_adj", "300");
    limit(RLIMIT_NOFILE, 10000, 65536);
    limit(RLIMIT_CORE, 0, 0);
    umask(022);
    drop_powers();
    unblock_signals();
    if (chdir("/app") == 0) {
        environ = spec->env;
        execvp(spec->argv[0], spec->argv);
    }
    problem = errno;
    if (write(error, &problem, sizeof problem) != sizeof problem) _exit(125);
    _exit(127);
}

static void only(int a, int b) {
    int low = a < b ? a : b, high = a < b ? b : a;
    if (low > 3) syscall(SYS_close_range, 3, low - 1, 0);
    if (high > low + 1) syscall(SYS_close_range, low + 1, high - 1, 0);
    syscall(SYS_close_range, high + 1, ~0u, 0);
}

/* Process 1 of the dyno: starts the command, buries the dead, passes signals on, ends with the command; asked to end, with the
 * last of the command's descendants: where the command is a shell above the app, it is gone long before that. */
static void init(const struct spec *spec, struct plan *plan, int status, int go) {
    sigset_t all;
    char byte;
    int ended, code = 0, over = 0, asked = 0;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    if (read(go, &byte, 1) != 1) _exit(1);
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")) _exit(1);
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    if (spec->hostname && sethostname(spec->hostname, strlen(spec->hostname))) _exit(1);
    pid_t command = fork();
    if (command == 0) become(spec, plan);
    only(status, status);
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(null, i);
    for (;;) {
        siginfo_t info;
        int number = sigwaitinfo(&all, &info);
        if (number == ASK_ALL) asked = 1, kill(-1, SIGTERM);
        else if (number > 0 && number != SIGCHLD) kill(command, number);
        if (number != SIGCHLD) continue;
        pid_t pid;
        while ((pid = waitpid(-1, &ended, WNOHANG)) > 0)
            if (pid == command) code = ended, over = 1;
        if (!over || (asked && pid == 0)) continue; /* 0: somebody is left; orphans are children of this process */
        if (write(status, &code, sizeof code) != sizeof code) _exit(1);
        _exit(0); /* the kernel ends everything else in the namespace */
    }
}

static int settle(struct plan *plan, struct streams *mine, const struct spec *spec, char *why, size_t size) {
    int problem = 0;
    close_child_ends(plan);
    ssize_t count = read(plan->error[0], &problem, sizeof problem);
    close(plan->error[0]);
    plan->error[0] = -1;
    if (mine->out >= 0) fcntl(mine->out, F_SETFL, O_NONBLOCK);
    if (mine->err >= 0) fcntl(mine->err, F_SETFL, O_NONBLOCK);
    if (mine->in >= 0) fcntl(mine->in, F_SETFL, O_NONBLOCK);
    if (count != sizeof problem) return 0;
    snprintf(why, size, "%s: %s", spec->argv[0], strerror(problem));
    return -1;
}

static void join_cgroup(pid_t pid) {
    char text[16];
    snprintf(text, sizeof text, "%d", pid);
    put("/cg/dyno/cgroup.procs", text);
}

pid_t run_dyno(const struct spec *spec, struct streams *mine, char *why, size_t size) {
    struct plan plan = no_plan;
    int status[2], go[2]; /* where one of these cannot be made, the guest ends */
    snprintf(why, size, "no process could be made");
    if (!spec->argc || open_streams(spec, &plan, mine) || pipe2(status, O_CLOEXEC) || pipe2(go, O_CLOEXEC))
        return give_up(&plan, mine);
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) init(spec, &plan, status[1], go[0]);
    close(status[1]), close(go[0]);
    if (pid > 0) join_cgroup(pid);
    if (pid < 0 || write(go[1], "", 1) != 1) return give_up(&plan, mine);
    close(go[1]);
    status_fd = status[0];
    return settle(&plan, mine, spec, why, size) ? give_up(&plan, mine) : pid;
}

int run_status(void) {
    int code;
    ssize_t count = read(status_fd, &code, sizeof code);
    return count == sizeof code ? code : -1;
}

static int namespace_of(pid_t pid, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

pid_t run_further(pid_t init_pid, const struct spec *spec, struct streams *mine, char *why, size_t size) {
    struct plan plan = no_plan;
    int go[2] = {-1, -1}, own = namespace_of(getpid(), "pid");
    int pids = namespace_of(init_pid, "pid"), mounts = namespace_of(init_pid, "mnt");
    int ipc = namespace_of(init_pid, "ipc"), uts = namespace_of(init_pid, "uts");
    int there = own >= 0 && pids >= 0 && mounts >= 0 && ipc >= 0 && uts >= 0;
    char byte;
    pid_t pid = -1;
    snprintf(why, size, there ? "no process could be made" : "the dyno has ended");
    if (spec->argc && there && !open_streams(spec, &plan, mine) && !pipe2(go, O_CLOEXEC)) {
        setns(pids, CLONE_NEWPID); /* for children only */
        pid = fork();
        if (pid == 0) {
            if (read(go[0], &byte, 1) != 1 || setns(ipc, CLONE_NEWIPC) || setns(uts, CLONE_NEWUTS) || setns(mounts, CLONE_NEWNS))
                _exit(126);
            become(spec, &plan);
        }
        setns(own, CLONE_NEWPID);
    }
    int over[] = {own, pids, mounts, ipc, uts, go[0]};
    for (int i = 0; i < 6; i++)
        if (over[i] >= 0) close(over[i]);
    if (pid > 0) {
        join_cgroup(pid);
        if (write(go[1], "", 1) != 1) pid = -1;
    }
    if (go[1] >= 0) close(go[1]);
    return pid < 0 || settle(&plan, mine, spec, why, size) ? give_up(&plan, mine) : pid;
}

void run_everyone(pid_t init_pid, int number) {
    FILE *file = fopen("/cg/dyno/cgroup.procs", "re");
    int pid, count = 0;
    while (file && fscanf(file, "%d", &pid) == 1)
        if (pid > 0 && pid != init_pid) kill(pid, number), count++;
    if (file) fclose(file);
    if (!count) kill(init_pid, number);
}
