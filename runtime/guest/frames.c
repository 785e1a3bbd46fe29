/* Frames over the virtio port: whole ones, in order, never blocking. A host end that was killed may have left half a frame in
 * either direction; the next one sends SYNC until it is answered, and both skip to the next frame that begins with the magic
 * number. */
#include "guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC 0x66545644u /* "DVTf" */

static int port = -1, connected;
static uint8_t *out;
static size_t out_used, out_size;
static uint8_t in[2 * (sizeof(struct frame) + CHUNK)];
static size_t in_used;

void frames_open(int fd) { port = fd; }
int frames_port(void) { return port; }
void frames_connected(int yes) { connected = yes; }
int frames_are_connected(void) { return connected; }
size_t frames_waiting(void) { return out_used; }

static void append(const void *bytes, size_t length) {
    if (out_used + length > out_size) {
        size_t size = 2 * (out_used + length);
        uint8_t *more = realloc(out, size);
        if (!more) return;
        out = more, out_size = size;
    }
    memcpy(out + out_used, bytes, length);
    out_used += length;
}

void frames_send(uint8_t type, uint16_t channel, const void *payload, uint32_t length) {
    struct frame head = {MAGIC, type, 0, channel, length};
    append(&head, sizeof head);
    if (length) append(payload, length);
    frames_write();
}

void frames_write(void) {
    size_t done = 0;
    while (done < out_used) {
        ssize_t count = write(port, out + done, out_used - done > 32768 ? 32768 : out_used - done);
        if (count <= 0) break;
        done += (size_t)count;
    }
    if (done) memmove(out, out + done, out_used -= done);
}

/* The offset of the next frame's head; what is before it is the rest of something whose sender has gone. */
static size_t find_head(void) {
    static const uint8_t magic[4] = {0x44, 0x56, 0x54, 0x66};
    size_t at = 0;
    while (at + 4 <= in_used && memcmp(in + at, magic, 4)) at++;
    return at;
}

void frames_read(void (*take)(const struct frame *, const uint8_t *)) {
    for (;;) {
        ssize_t count = read(port, in + in_used, sizeof in - in_used);
        if (count <= 0) break;
        in_used += (size_t)count;
        for (;;) {
            struct frame head;
            size_t skipped = find_head();
            if (skipped) memmove(in, in + skipped, in_used -= skipped);
            if (in_used < sizeof head) break;
            memcpy(&head, in, sizeof head);
            if (head.length > CHUNK) {
                memmove(in, in + 4, in_used -= 4);
                continue;
            }
            if (in_used < sizeof head + head.length) break;
            take(&head, in + sizeof head);
            memmove(in, in + sizeof head + head.length, in_used -= sizeof head + head.length);
        }
    }
}
