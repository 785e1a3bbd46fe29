/* What the runtime wants to know of the dyno: who listens, and what it uses. */
#include "guest.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MOST 256
#define STALLED 15.0 /* percent of the last ten seconds in which all of it waited for memory */

struct listener {
    uint8_t family, address[16];
    uint16_t port;
} __attribute__((packed));

static struct listener before[MOST];
static int before_count = -1;

static int read_table(const char *path, uint8_t family, struct listener *found, int count) {
    char line[512], address[64];
    unsigned port, state;
    FILE *file = fopen(path, "re");
    while (file && count < MOST && fgets(line, sizeof line, file)) {
        if (sscanf(line, " %*d: %63[0-9A-F]:%x %*[0-9A-F]:%*x %x", address, &port, &state) != 3 || state != 10) continue;
        struct listener *one = &found[count++];
        memset(one, 0, sizeof *one);
        one->family = family, one->port = (uint16_t)port;
        for (size_t i = 0; i < strlen(address) / 8 && i < 4; i++) {
            char word[9];
            memcpy(word, address + 8 * i, 8);
            word[8] = 0;
            uint32_t value = (uint32_t)strtoul(word, NULL, 16); /* in this machine's own byte order, as the kernel prints it */
            memcpy(one->address + 4 * i, &value, 4);
        }
    }
    if (file) fclose(file);
    return count;
}

void look_listeners(int always) {
    static struct listener now[MOST];
    int count = read_table("/proc/net/tcp6", 6, now, read_table("/proc/net/tcp", 4, now, 0));
    if (!always && count == before_count && !memcmp(now, before, sizeof *now * (size_t)count)) return;
    memcpy(before, now, sizeof *now * (size_t)count);
    before_count = count;
    frames_send(LISTENERS, 0, now, (uint32_t)(sizeof *now * (size_t)count));
}

static uint64_t number_in(const char *path, const char *key) {
    char line[128], name[64];
    unsigned long long value, found = 0;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (!key && sscanf(line, "%llu", &value) == 1) found = value;
        else if (key && sscanf(line, "%63s %llu", name, &value) == 2 && !strcmp(name, key)) found = value;
    }
    if (file) fclose(file);
    return found;
}

static uint64_t thrashed;

uint64_t look_ooms(void) { return number_in("/cg/dyno/memory.events", "oom_kill") + thrashed; }

/* Bytes of the dyno's that the kernel cannot drop and read again. */
static uint64_t kept(void) {
    uint64_t all = number_in("/cg/dyno/memory.current", NULL) + number_in("/cg/dyno/memory.stat", "shmem");
    uint64_t cache = number_in("/cg/dyno/memory.stat", "file");
    return all > cache ? all - cache : 0;
}

/* At its limit a dyno may do little but read its own program from the disk again and again, for ever: to the kernel that is
   progress, so it ends nothing. What has no room for its program any more, and waits for memory, is ended as by want of it. */
void look_pressure(void) {
    char line[128];
    double stalled = 0;
    uint64_t most = number_in("/cg/dyno/memory.max", NULL);
    FILE *file = fopen("/cg/dyno/memory.pressure", "re");
    while (file && fgets(line, sizeof line, file)) sscanf(line, "full avg10=%lf", &stalled);
    if (file) fclose(file);
    if (!most || stalled < STALLED || kept() < most - most / 32) return;
    thrashed++;
    put("/cg/dyno/cgroup.kill", "1");
}

void look_figures(void) {
    struct statvfs disk;
    uint64_t figures[6] = {0};
    figures[0] = kept();
    if (!statvfs("/n/scratch", &disk) && !(disk.f_flag & ST_RDONLY))
        figures[1] = (uint64_t)(disk.f_blocks - disk.f_bfree) * disk.f_frsize;
    figures[2] = number_in("/cg/dyno/cpu.stat", "usage_usec");
    figures[3] = number_in("/cg/dyno/pids.current", NULL);
    figures[4] = look_ooms();
    figures[5] = number_in("/proc/meminfo", "MemTotal:");
    frames_send(FIGURES, 0, figures, sizeof figures);
}
