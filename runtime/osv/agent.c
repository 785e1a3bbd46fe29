/* What Davit runs in a unikernel beside the app: a shared object that OSv's own loader starts.
 *
 *   PORT               brings signals in, where nothing from outside can send any: for each number that a connection to this TCP port
 *                      sends as a line it raises that signal in the one process that there is
 *   wait PORT...       is over once somebody listens at each of them in turn, or after half a minute
 *   begin PORT OBJECT  runs a further program once somebody has connected to PORT
 *
 * OSv makes a program ready (its list of constructors) in that program's own thread, and keeps only one such list: a second one that
 * is loaded meanwhile gets the first one's. So a program with constructors that runs beside the app is begun by `begin`, while `wait`
 * holds everything else back: by then `wait` is ready, and dlopen makes the program ready under OSv's lock. This one has none.
 *
 * When the main of an app that OSv's loader runs has returned, OSv asks everything beside it to end, and waits for that before it
 * powers off. It is not kept waiting, least of all by what `begin` runs, which may crash when it ends: the first that is asked
 * shuts down as exit(3) does, whatever runs then. A kernel that shows no way to do that is waited for by nobody here: the thread that
 * asks wakes whoever waits. (All that runs of this file is one object, loaded once.) */
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

void osv_current_app_on_termination_request(void (*)(void)) __attribute__((weak));
void osv_shutdown(void) __asm__("_ZN3osv8shutdownEv") __attribute__((weak));

static const char *volatile awaited[2];
static volatile int over;

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

static int knock(const char *port)
{
    struct sockaddr_in place = at(INADDR_LOOPBACK, port);
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    int there = connection >= 0 && connect(connection, (struct sockaddr *)&place, sizeof place) == 0;

    if (connection >= 0)
        close(connection);
    return there;
}

static void end(void)
{
    int one;

    if (osv_shutdown)
        osv_shutdown();
    over = 1;
    for (one = 0; one < 2; one++)
        if (awaited[one])
            knock(awaited[one]);
}

/* Who comes next, or -1: it is over. */
static int next(int listener)
{
    while (!over) {
        int connection = accept(listener, 0, 0);

        if (connection < 0) {
            usleep(10000);
            continue;
        }
        if (!over)
            return connection;
        close(connection);
    }
    return -1;
}

static void until_it_is_over(int one, const char *port)
{
    awaited[one] = port;
    if (osv_current_app_on_termination_request)
        osv_current_app_on_termination_request(end);
}

static int wait_for(char **ports)
{
    int tries = 0;

    while (*ports && tries++ < TRIES) {
        if (knock(*ports))
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
    until_it_is_over(0, port);
    connection = next(listener);
    awaited[0] = 0;
    close(listener);
    if (connection < 0)
        return 0;
    close(connection);
    opened = dlopen(object, RTLD_NOW);
    if (opened)
        *(void **)&program = dlsym(opened, "main");
    return program ? program(1, words) : 0;
}

int main(int argc, char **argv)
{
    int listener, connection;

    if (argc > 2 && strcmp(argv[1], "wait") == 0)
        return wait_for(argv + 2);
    if (argc == 4 && strcmp(argv[1], "begin") == 0)
        return begin(argv[2], argv[3]);
    listener = argc == 2 ? listen_at(INADDR_ANY, argv[1]) : -1;
    if (listener < 0)
        return 0;
    until_it_is_over(1, argv[1]);
    while ((connection = next(listener)) >= 0) {
        char text[16];
        ssize_t size;
        int number;

        size = recv(connection, text, sizeof text - 1, 0);
        text[size > 0 ? size : 0] = 0;
        number = atoi(text);
        send(connection, "ok\n", 3, MSG_NOSIGNAL);
        close(connection);
        if (number > 0 && number < 65)
            kill(getpid(), number);
    }
    awaited[1] = 0;
    close(listener);
    return 0;
}
