/* Bringing the guest up: modules, disks, the dyno's file system, its network, its control group. */
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define ROOT "/n/root"

static char why[256];

static const char *failed(const char *what) {
    snprintf(why, sizeof why, "%s: %s", what, strerror(errno));
    return why;
}

int put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return -1;
    size_t length = strlen(text), done = 0;
    while (done < length) {
        ssize_t count = write(fd, text + done, length - done);
        if (count <= 0) break;
        done += (size_t)count;
    }
    close(fd);
    return done == length ? 0 : -1;
}

/* The initramfs names them /modules/00-NAME.ko and so on, in the order in which they need each other. */
void boot_modules(void) {
    struct dirent **found;
    int count = scandir("/modules", &found, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", found[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && found[i]->d_name[0] != '.') {
            syscall(SYS_finit_module, fd, "", 0);
            unlink(path);
        }
        if (fd >= 0) close(fd);
    }
}

static int read_line(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t count = read(fd, text, size - 1);
    close(fd);
    if (count < 0) return -1;
    text[count] = 0;
    text[strcspn(text, "\n")] = 0;
    return 0;
}

/* The device node below /dev of the entry of `class` whose attribute `attribute` is `value`. */
static int find_device(const char *class, const char *attribute, const char *value, char *node, size_t size) {
    DIR *dir = opendir(class);
    struct dirent *entry;
    int found = -1;
    while (dir && found < 0 && (entry = readdir(dir))) {
        char path[512], text[64];
        snprintf(path, sizeof path, "%s/%s/%s", class, entry->d_name, attribute);
        if (entry->d_name[0] != '.' && !read_line(path, text, sizeof text) && !strcmp(text, value)) {
            snprintf(node, size, "/dev/%s", entry->d_name);
            found = 0;
        }
    }
    if (dir) closedir(dir);
    return found;
}

int boot_port(const char *name, int flags) {
    char node[300];
    for (int attempt = 0; attempt < 2000; attempt++) {
        if (!find_device("/sys/class/virtio-ports", "name", name, node, sizeof node)) {
            int fd = open(node, flags | O_CLOEXEC);
            if (fd >= 0) return fd;
        }
        usleep(5000);
    }
    return -1;
}

static const char *mount_image(const char *serial, const char *target) {
    char node[300];
    mkdir(target, 0755);
    if (find_device("/sys/block", "serial", serial, node, sizeof node)) return failed(serial);
    if (!mount(node, target, "erofs", MS_RDONLY | MS_NODEV | MS_NOSUID, "")) return NULL;
    if (!mount(node, target, "squashfs", MS_RDONLY | MS_NODEV | MS_NOSUID, "")) return NULL;
    return failed(serial);
}

static int has_disk(const char *serial) {
    char node[300];
    return !find_device("/sys/block", "serial", serial, node, sizeof node);
}

static void device(const char *name, unsigned major, unsigned minor) {
    char path[128];
    snprintf(path, sizeof path, ROOT "/dev/%s", name);
    mknod(path, S_IFCHR | 0666, makedev(major, minor));
    chmod(path, 0666);
}

static void bind_text(const char *text, const char *name, const char *target) {
    char source[64];
    if (!text) return;
    snprintf(source, sizeof source, "/n/etc/%s", name);
    if (!put(source, text) && !mount(source, target, NULL, MS_BIND, NULL))
        mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static const char *mount_layers(const struct spec *spec) {
    const char *problem = mount_image("stack", "/n/stack");
    int slug = has_disk("slug");
    const char *lower = slug ? "/n/slug:/n/stack" : "/n/stack";
    char options[256], node[300];
    if (problem) return problem;
    if (slug && (problem = mount_image("slug", "/n/slug"))) return problem;
    mkdir(ROOT, 0755);
    if (spec->readonly) {
        if (!slug) return mount("/n/stack", ROOT, NULL, MS_BIND, NULL) ? failed("the stack") : NULL;
        snprintf(options, sizeof options, "lowerdir=%s", lower);
        return mount("overlay", ROOT, "overlay", MS_RDONLY | MS_NOSUID | MS_NODEV, options) ? failed("the layers") : NULL;
    }
    mkdir("/n/scratch", 0755);
    if (find_device("/sys/block", "serial", "scratch", node, sizeof node)) return failed("scratch");
    if (mount(node, "/n/scratch", "ext4", MS_NOATIME | MS_NOSUID | MS_NODEV, "noinit_itable,barrier=0,discard"))
        return failed("the writable layer");
    mkdir("/n/scratch/upper", 0755), mkdir("/n/scratch/work", 0755);
    if (!slug) {
        mkdir("/n/scratch/upper/app", 0755);
        if (chown("/n/scratch/upper/app", USER, USER)) return failed("/app");
    }
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=/n/scratch/upper,workdir=/n/scratch/work", lower);
    return mount("overlay", ROOT, "overlay", MS_NOSUID | MS_NODEV, options) ? failed("the layers") : NULL;
}

const char *boot_root(const struct spec *spec) {
    char options[96];
    const char *problem;
    mkdir("/n", 0700);
    mount("tmpfs", "/n", "tmpfs", 0, "mode=0700,size=4m");
    mkdir("/n/etc", 0755);
    if ((problem = mount_layers(spec))) return problem;
    mount("tmpfs", ROOT "/dev", "tmpfs", MS_NOSUID, "mode=755,size=64k");
    device("null", 1, 3), device("zero", 1, 5), device("full", 1, 7), device("random", 1, 8), device("urandom", 1, 9);
    device("tty", 5, 0);
    mkdir(ROOT "/dev/pts", 0755), mkdir(ROOT "/dev/shm", 01777);
    if (symlink("/proc/self/fd", ROOT "/dev/fd") || symlink("/proc/self/fd/0", ROOT "/dev/stdin") ||
        symlink("/proc/self/fd/1", ROOT "/dev/stdout") || symlink("/proc/self/fd/2", ROOT "/dev/stderr") ||
        symlink("pts/ptmx", ROOT "/dev/ptmx"))
        return failed("/dev");
    mount("devpts", ROOT "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
    snprintf(options, sizeof options, "mode=1777,size=%s", spec->shm ? spec->shm : "64m");
    mount("shm", ROOT "/dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, options);
    mount("tmpfs", ROOT "/sys", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, "mode=755,size=4k");
    if (spec->readonly) mount("tmpfs", ROOT "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m");
    bind_text(spec->hosts, "hosts", ROOT "/etc/hosts");
    bind_text(spec->resolv, "resolv.conf", ROOT "/etc/resolv.conf");
    bind_text(spec->certificates, "certificates", ROOT "/etc/ssl/certs/ca-certificates.crt");
    return NULL;
}

static int set_address(int s, const char *name, unsigned long request, uint32_t address) {
    struct ifreq ifr = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&ifr.ifr_addr;
    strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
    in->sin_family = AF_INET, in->sin_addr.s_addr = address;
    return ioctl(s, request, &ifr);
}

static int set_up(int s, const char *name) {
    struct ifreq ifr = {0};
    strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(s, SIOCGIFFLAGS, &ifr)) return -1;
    ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_UP);
    return ioctl(s, SIOCSIFFLAGS, &ifr);
}

static int set_mac(int s, const uint8_t *mac) {
    struct ifreq ifr = {0};
    strncpy(ifr.ifr_name, "eth0", IFNAMSIZ - 1);
    ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(ifr.ifr_hwaddr.sa_data, mac, 6);
    return ioctl(s, SIOCSIFHWADDR, &ifr);
}

static int set_route(int s, const char *gateway) {
    struct rtentry route = {0};
    struct sockaddr_in *to = (struct sockaddr_in *)&route.rt_dst, *by = (struct sockaddr_in *)&route.rt_gateway,
                       *mask = (struct sockaddr_in *)&route.rt_genmask;
    to->sin_family = by->sin_family = mask->sin_family = AF_INET;
    inet_pton(AF_INET, gateway, &by->sin_addr);
    route.rt_flags = RTF_UP | RTF_GATEWAY;
    return ioctl(s, SIOCADDRT, &route);
}

/* `spec->address` is 198.18.0.5/20. */
const char *boot_network(const struct spec *spec) {
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    set_up(s, "lo");
    if (!spec->address || !spec->gateway) {
        close(s);
        return NULL;
    }
    char text[64];
    snprintf(text, sizeof text, "%s", spec->address);
    char *slash = strchr(text, '/');
    int bits = slash ? atoi(slash + 1) : 24;
    if (slash) *slash = 0;
    uint32_t address = 0, mask = htonl(bits ? ~0u << (32 - bits) : 0);
    inet_pton(AF_INET, text, &address);
    const char *problem = NULL;
    if (spec->has_mac) set_mac(s, spec->mac); /* virtio's may change while it is up */
    if (set_address(s, "eth0", SIOCSIFADDR, address) || set_address(s, "eth0", SIOCSIFNETMASK, mask) ||
        set_up(s, "eth0") || (set_route(s, spec->gateway) && errno != EEXIST))
        problem = failed("the network");
    close(s);
    return problem;
}

void boot_apply(const struct spec *spec) {
    if (spec->clock) {
        struct timespec now = {(time_t)(spec->clock / 1000000000u), (long)(spec->clock % 1000000000u)};
        clock_settime(CLOCK_REALTIME, &now);
    }
    if (spec->hosts) put("/n/etc/hosts", spec->hosts); /* what the dyno sees is this very file */
    if (spec->resolv) put("/n/etc/resolv.conf", spec->resolv);
    if (spec->address) boot_network(spec), connections_end();
}

void boot_cgroup(uint64_t memory, uint64_t pids) {
    char text[32];
    if (mkdir("/cg", 0700) == 0) {
        mount("cgroup2", "/cg", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
        put("/cg/cgroup.subtree_control", "+memory +pids +cpu");
        mkdir("/cg/dyno", 0700);
        put("/cg/dyno/memory.oom.group", "1");
    }
    if (memory) {
        snprintf(text, sizeof text, "%llu", (unsigned long long)memory);
        put("/cg/dyno/memory.max", text);
    }
    if (pids) {
        snprintf(text, sizeof text, "%llu", (unsigned long long)pids);
        put("/cg/dyno/pids.max", text);
    }
}

/* Nobody else in the guest brings processors that were plugged in to life, or puts them to rest before they are pulled. */
void boot_processors(uint32_t count) {
    for (uint32_t i = 1; i < 512; i++) {
        char path[96], now[8];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/online", i);
        if (read_line(path, now, sizeof now)) continue;
        const char *wanted = i < count ? "1" : "0";
        if (strcmp(now, wanted)) put(path, wanted);
    }
}
