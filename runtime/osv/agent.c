/* Brings signals into a unikernel, where nothing from outside can send any: listens on the TCP port that it is given, and for
 * each number that a connection sends as a line raises that signal in the one process that there is. With `wait PORT` it is
 * over once somebody listens there, or after ten seconds. A shared object that OSv's own loader starts; nothing of the
 * platform's other parts is in it. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int wait_for(int port)
{
    struct sockaddr_in address;
    int tries;

    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (tries = 0; tries < 1000; tries++) {
        int connection = socket(AF_INET, SOCK_STREAM, 0);
        int there = connection >= 0 && connect(connection, (struct sockaddr *)&address, sizeof address) == 0;

        if (connection >= 0)
            close(connection);
        if (there)
            break;
        usleep(10000);
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

    if (argc == 3 && strcmp(argv[1], "wait") == 0)
        return wait_for(atoi(argv[2]));
    if (argc < 2 || listener < 0)
        return 0;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4) < 0)
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
