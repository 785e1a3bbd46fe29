/* What Davit runs in a unikernel beside the app: a shared object that OSv's own loader starts.
 *
 *   PORT               brings signals in, where nothing from outside can send any: for each number that a connection to this TCP port
 *                      sends as a line it raises that signal in the one process that there is
 *   wait PORT...       is over once somebody listens at each of them in turn, or after half a minute
 *   begin PORT OBJECT  runs a further program once somebody has connected to PORT
 *
 * OSv makes a program ready (its list of constructors) in that program's own thread, and keeps only one such list: a second one that
 * is loaded meanwhile gets the first one's. So a program with constructors that runs beside the app is begun by `begin`, while `wait`
 * holds everything else back: by then `wait` is ready, and dlopen makes the program ready under OSv's lock. This one has none. */
#include <dlfcn.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef TRIES
#define TRIES 3000
#endif

static struct sockaddr_in at(in_addr_t address, const char *port)
{
    struct sockaddr_in place;

    memset(&place, 0, sizeof place);
    place.sin_family = AF_INET;
    place.sin_port = htons(atoi(port));
    place.sin_addr.s_addr = htonl(address);
    return place;
}

static int listen_at(in_addr_t address, const char *port)
{
    struct sockaddr_in place = at(address, port);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

    if (listener < 0)
        return -1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&place, sizeof place) == 0 && listen(listener, 4) == 0)
        return listener;
    close(listener);
    return -1;
}

static int wait_for(char **ports)
{
    int tries = 0;

    while (*ports && tries++ < TRIES) {
        struct sockaddr_in place = at(INADDR_LOOPBACK, *ports);
        int connection = socket(AF_INET, SOCK_STREAM, 0);
        int there = connection >= 0 && connect(connection, (struct sockaddr *)&place, sizeof place) == 0;

        if (connection >= 0)
            close(connection);
        if (there)
            ports++;
        else
            usleep(10000);
    }
    return 0;
}

static int begin(const char *port, char *object)
{
    char *words[] = {object, 0};
    int (*program)(int, char **) = 0;
    int connection, listener = listen_at(INADDR_LOOPBACK, port);
    void *opened;

    if (listener < 0)
        return 0;
    while ((connection = accept(listener, 0, 0)) < 0)
        usleep(10000);
    close(connection);
    close(listener);
    opened = dlopen(object, RTLD_NOW);
    if (opened)
        *(void **)&program = dlsym(opened, "main");
    return program ? program(1, words) : 0;
}

int main(int argc, char **argv)
{
    int listener;

    if (argc > 2 && strcmp(argv[1], "wait") == 0)
        return wait_for(argv + 2);
    if (argc == 4 && strcmp(argv[1], "begin") == 0)
        return begin(argv[2], argv[3]);
    listener = argc == 2 ? listen_at(INADDR_ANY, argv[1]) : -1;
    if (listener < 0)
        return 0;
    for (;;) {
        char text[16];
        ssize_t size;
        int number, connection = accept(listener, 0, 0);

        if (connection < 0)
            continue;
        size = recv(connection, text, sizeof text - 1, 0);
        text[size > 0 ? size : 0] = 0;
        number = atoi(text);
        send(connection, "ok\n", 3, MSG_NOSIGNAL);
        close(connection);
        if (number > 0 && number < 65)
            kill(getpid(), number);
    }
}
