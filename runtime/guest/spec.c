/* What a command is to be, as it arrives: a key, a length and that many bytes, again and again, in as many SPEC frames as it
 * takes. runtime/microvm/protocol.py writes it. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

#define PENDING 8
#define LARGEST (8u << 20)

static struct {
    uint16_t channel;
    uint8_t *bytes;
    uint32_t used;
} pending[PENDING];

static int slot_of(uint16_t channel, int make) {
    for (int i = 0; i < PENDING; i++)
        if (pending[i].bytes && pending[i].channel == channel) return i;
    for (int i = 0; make && i < PENDING; i++)
        if (!pending[i].bytes) return i;
    return -1;
}

void spec_add(uint16_t channel, const uint8_t *bytes, uint32_t length) {
    int i = slot_of(channel, 1);
    if (i < 0 || pending[i].used + length > LARGEST) return;
    uint8_t *more = realloc(pending[i].bytes, pending[i].used + length + 1);
    if (!more) return;
    memcpy(more + pending[i].used, bytes, length);
    pending[i].bytes = more, pending[i].channel = channel, pending[i].used += length;
}

static char *text_of(const uint8_t *bytes, uint32_t length) {
    char *text = malloc(length + 1);
    memcpy(text, bytes, length);
    text[length] = 0;
    return text;
}

static void push(char ***list, int *count, char *text) {
    *list = realloc(*list, sizeof(char *) * (size_t)(*count + 2));
    (*list)[(*count)++] = text;
    (*list)[*count] = NULL;
}

static uint64_t number_of(const uint8_t *bytes, uint32_t length) {
    uint64_t value = 0;
    memcpy(&value, bytes, length < 8 ? length : 8);
    return value;
}

static void set(char **field, char *text) {
    free(*field);
    *field = text;
}

struct spec *spec_take(uint16_t channel) {
    int i = slot_of(channel, 0);
    struct spec *spec = calloc(1, sizeof *spec);
    uint32_t at = 0, used = i < 0 ? 0 : pending[i].used;
    int sound = i >= 0;
    while (sound && at < used) {
        const uint8_t *bytes = pending[i].bytes + at;
        uint32_t length;
        if (used - at < 5) { sound = 0; break; }
        memcpy(&length, bytes + 1, 4);
        if (length > used - at - 5) { sound = 0; break; }
        const uint8_t *value = bytes + 5;
        switch (*bytes) {
        case 'c': push(&spec->argv, &spec->argc, text_of(value, length)); break;
        case 'e': push(&spec->env, &spec->envc, text_of(value, length)); break;
        case 'H': set(&spec->hostname, text_of(value, length)); break;
        case 'o': set(&spec->hosts, text_of(value, length)); break;
        case 'r': set(&spec->resolv, text_of(value, length)); break;
        case 'C': set(&spec->certificates, text_of(value, length)); break;
        case 'a': set(&spec->address, text_of(value, length)); break;
        case 'g': set(&spec->gateway, text_of(value, length)); break;
        case 's': set(&spec->shm, text_of(value, length)); break;
        case 'M': if (length == 6) memcpy(spec->mac, value, 6), spec->has_mac = 1; break;
        case 'm': spec->memory = number_of(value, length); break;
        case 'p': spec->pids = number_of(value, length); break;
        case 't': spec->clock = number_of(value, length); break;
        case 'R': spec->readonly = 1; break;
        case 'S': spec->streams = 1; break;
        case 'T':
            spec->terminal = 1;
            spec->rows = (uint16_t)number_of(value, 2), spec->columns = (uint16_t)number_of(value + 2, 2);
            break;
        }
        at += 5 + length;
    }
    if (i >= 0) {
        memset(pending[i].bytes, 0, pending[i].used); /* secrets */
        free(pending[i].bytes);
        pending[i].bytes = NULL, pending[i].used = 0;
    }
    if (!spec->env) spec->env = calloc(1, sizeof(char *));
    if (sound) return spec;
    spec_free(spec);
    return NULL;
}

static void free_list(char **list) {
    for (char **item = list; item && *item; item++) {
        memset(*item, 0, strlen(*item));
        free(*item);
    }
    free(list);
}

void spec_free(struct spec *spec) {
    if (!spec) return;
    free_list(spec->argv);
    free_list(spec->env);
    free(spec->hostname), free(spec->hosts), free(spec->resolv), free(spec->certificates);
    free(spec->address), free(spec->gateway), free(spec->shm);
    free(spec);
}
