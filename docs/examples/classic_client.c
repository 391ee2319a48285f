/* A client of POSIX sockets alone: cc -std=c99 -o classic_client classic_client.c && ./classic_client [HOST [PORT]]
 * Requests are fixed texts here, and a field is found by its name alone; for more take a JSON library. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define TIMEOUT 10 /* seconds, for each wait */
#define WRAP 4096 /* what stands around the max_length bytes that a server takes, when they come back */
#define FAIL(...) (fprintf(stderr, "classic_client: " __VA_ARGS__), fputc('\n', stderr), exit(1))

static int server = -1;
static unsigned long max_length = 1048576; /* until the welcome says it */
static char *payload;                      /* what came last, and a zero behind it */
static char value[256];                    /* what field() found */

/* Send or receive so many bytes: a call may do a part of them, or be interrupted. */
static void transfer(int sends, unsigned char *next, size_t size)
{
    while (size > 0) {
        ssize_t count = sends ? send(server, next, size, 0) : recv(server, next, size, 0);
        if (count > 0) {
            next += count;
            size -= (size_t)count;
        } else if (count == 0)
            FAIL("the connection ended before a whole message was there");
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            FAIL("nothing came for %d seconds", TIMEOUT);
        else if (errno != EINTR)
            FAIL("%s", strerror(errno));
    }
}

/* Sets value to the first field of that name in the payload, as JSON, cut to its room. */
static const char *field(const char *quoted_name)
{
    const char *at = payload;
    size_t i = 0;
    int text, escaped = 0;
    do { /* another such text, but no name? go on */
        at = strstr(at, quoted_name);
        if (at == NULL)
            return strcpy(value, "null");
        at += strlen(quoted_name);
    } while (at[strspn(at, " \t\r\n")] != ':');
    at += strspn(at, " \t\r\n:");
    text = *at == '"';
    /* To its end, or to a control character, which no JSON holds there. */
    while (i < sizeof value - 1 && (unsigned char)*at >= ' ' && (text || strchr(" ,]}", *at) == NULL)) {
        /* U+0080 to U+009F JSON leaves as they are; terminals obey them. */
        value[i++] = *at == '\xC2' && (at[1] & '\xE0') == '\x80' ? '?' : *at;
        at += value[i - 1] != *at;
        if (text && i > 1 && *at == '"' && !escaped)
            break;
        escaped = *at++ == '\\' && !escaped;
    }
    value[i] = '\0';
    return value;
}

static void receive(void)
{
    unsigned char head[4]; /* network byte order */
    unsigned long length = 0;
    transfer(0, head, sizeof head);
    for (int i = 0; i < 4; i++)
        length = length << 8 | head[i];
    if (length > max_length + WRAP)
        FAIL("a message of %lu bytes is too long", length);
    free(payload);
    payload = calloc(length + 1, 1);
    if (payload == NULL)
        FAIL("no memory for %lu bytes", length);
    transfer(0, (unsigned char *)payload, length);
    if (payload[strspn(payload, " \t\r\n")] != '{')
        FAIL("what came is no JSON object");
}

/* The next message of a type. Others come at any time: somebody's broadcast, or an error. */
static void wait_for(const char *type)
{
    for (receive(); strcmp(field("\"type\""), type) != 0; receive()) {
        if (strcmp(value, "\"error\"") == 0) {
            fprintf(stderr, "classic_client: error %s: ", field("\"code\""));
            fprintf(stderr, "%s\n", field("\"message\""));
            exit(1);
        }
        printf("meanwhile: %s\n", value);
    }
}

static void ask(const char *json, const char *type)
{
    size_t length = strlen(json); /* bytes, not characters */
    unsigned char *frame = malloc(4 + length);
    if (frame == NULL || length > max_length)
        FAIL("the server takes no message of %lu bytes", (unsigned long)length);
    for (int i = 0; i < 4; i++)
        frame[i] = (unsigned char)(length >> (24 - 8 * i) & 255);
    memcpy(frame + 4, json, length);
    transfer(1, frame, 4 + length);
    free(frame);
    wait_for(type);
}

static void dial(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
    struct timeval wait = {.tv_sec = TIMEOUT};
    if (getaddrinfo(host, port, &hints, &found) != 0)
        FAIL("there is no %s port %s", host, port);
    for (each = found; each != NULL; each = each->ai_next) { /* a name may have several addresses */
        server = socket(each->ai_family, each->ai_socktype, each->ai_protocol);
        setsockopt(server, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        setsockopt(server, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait); /* on Linux that of connect(), too */
        if (connect(server, each->ai_addr, each->ai_addrlen) == 0)
            break;
        close(server);
    }
    freeaddrinfo(found);
    if (each == NULL)
        FAIL("cannot connect to %s port %s", host, port);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN); /* a closed connection makes send() fail, and ends no program */
    dial(argc > 1 ? argv[1] : "localhost", argc > 2 ? argv[2] : "9999");
    wait_for("\"welcome\"");
    long said = strtol(field("\"max_length\""), NULL, 10);
    if (said > 0 && said <= 1L << 28)
        max_length = (unsigned long)said;
    printf("welcome: client_id %s\n", field("\"client_id\""));
    ask("{\"type\": \"ping\"}", "\"pong\"");
    puts("pong");
    ask("{\"type\": \"echo\", \"content\": {\"text\": \"тест\"}}", "\"echo_response\"");
    if (strcmp(field("\"text\""), "\"тест\"") != 0 && strcmp(value, "\"\\u0442\\u0435\\u0441\\u0442\"") != 0)
        FAIL("the echo is another"); /* those are the two ways in which JSON spells it */
    puts("echo_response: the same content");
    ask("{\"type\": \"broadcast\", \"content\": {\"text\": \"тест\"}}", "\"broadcast_sent\"");
    printf("broadcast_sent: recipients %s\n", field("\"recipients\""));
    ask("{\"type\": \"get_stats\"}", "\"server_stats\"");
    printf("server_stats: connected_clients %s\n", field("\"connected_clients\""));
    ask("{\"type\": \"move\", \"x\": 1, \"y\": 2}", "\"response\"");
    puts("response");
    free(payload);
    close(server); /* every answer is here: nothing is lost */
    return 0;
}
