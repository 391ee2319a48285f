/*
 * A load generator that checks every answer.
 *
 *   loadgen echo      --port P --clients C --window W --payload text100|text10k|object
 *   loadgen broadcast --port P --clients R --window W [--payload KIND]    (R receivers and one sender)
 *   either:           [--host ADDRESS] [--seconds S] [--warmup S] [--limit MESSAGES]
 *
 * Frames are built once, as long as the window, in a ring for each sender; for each message only the digits
 * of its sequence number are written anew, in the content and in the id.  So contents and ids differ from
 * message to message and from client to client, the request in the ring is also what the answer must hold,
 * and a check is a scan of the few top-level fields and one memcmp.
 *
 * Talk with whoever runs it: after the warm-up, with nothing in flight, it prints "READY" and waits for a
 * line on stdin; it measures, prints one line of JSON, and waits again: each further line makes it measure once
 * more, the end of file makes it end.  The server is idle at all these waits: read its CPU time there.
 *
 * Exit status: 0 all answers were right; 1 an answer was wrong or missing (stderr says which); 2 usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 4,              /* bytes of a frame's length */
    DIGITS = 9,              /* of a sequence number: a billion messages for each sender */
    ID_LEN = 1 + 4 + DIGITS, /* of an id: "1", the client's number, the sequence number */
    LONG_TEXT = 10000,       /* characters of the content of text10k */
    ANSWER_ROOM = 1024,      /* what an answer may be longer than its request */
    WELCOME_ROOM = 16384,    /* the least receive buffer */
    MAX_CLIENTS = 9999,
    MAX_WINDOW = 4096,
    EVENTS = 512,
    STALL_MS = 10000,        /* silence for so long means that an answer is missing */
    WAIT_MS = 60000,         /* how long the runner may take for its lines */
    SLACK_SECONDS = 120,     /* what a phase, and the wait before it, may take longer than asked for */
};

/* Some bytes of a buffer that is owned elsewhere. */
struct span {
    const char *at;
    size_t len;
};

/* The requests of one sender: `window` frames of equal length, used over and over. */
struct lane {
    char *ring;
    size_t frame_len;
    size_t window;
    size_t content_at, content_len; /* offsets in a frame */
    size_t id_at;                   /* 0: the requests carry no id */
    size_t content_digits_at, id_digits_at;
    uint64_t queued; /* messages whose frames are in the ring, or were */
    uint64_t done;   /* messages fully answered */
    uint64_t sent;   /* bytes the socket took */
    unsigned *awaited; /* broadcast: for each slot, how many answers and deliveries are to come */
};

struct link {
    int fd;
    unsigned number;
    bool welcomed;
    char *buffer;
    size_t held, room;
    uint64_t got;       /* answers (of a receiver: deliveries) so far */
    struct lane *lane;  /* NULL: only receives */
};

struct options {
    bool broadcast;
    const char *host;
    unsigned port, clients, window;
    const char *payload;
    double seconds, warmup;
    uint64_t limit; /* messages of the measured phase */
};

struct bench {
    struct options opt;
    int epoll;
    struct link *links;
    size_t n_links, n_welcomed;
    uint64_t messages, deliveries; /* of this phase */
    uint64_t quota;                /* messages that this phase may still send */
    bool sending;
    char sender_id[128]; /* broadcast: the sender's client_id as a JSON value */
    size_t sender_id_len;
};

/* The top-level fields of an answer that are looked at; at == NULL: not there. */
struct answer {
    struct span type, content, id, timestamp, echoed_by, client_id, from_client, recipients;
};

/* ---- ending ---- */

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* Ends the run over an answer, which is shown (its beginning). */
static void wrong(const struct link *link, uint64_t seq, const char *what, struct span wanted,
                  struct span payload)
{
    const size_t shown = 300;
    int wanted_len = (int)(wanted.len < shown ? wanted.len : shown);
    int payload_len = (int)(payload.len < shown ? payload.len : shown);
    die("WRONG ANSWER: client %u, message %llu: %s\n  wanted: %.*s\n  answer: %.*s", link->number,
        (unsigned long long)seq, what, wanted_len, wanted.at, payload_len, payload.at);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die("out of memory");
    return memory;
}

static double clock_seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- reading an answer ---- */

static struct span text(const char *string)
{
    return (struct span){string, strlen(string)};
}

static bool same(struct span a, struct span b)
{
    return a.at && a.len == b.len && memcmp(a.at, b.at, b.len) == 0;
}

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t'))
        p++;
    return p;
}

/* p is at the opening quote; returns what follows the closing one, or NULL. */
static const char *skip_string(const char *p, const char *end)
{
    for (p++; p < end; p++) {
        if (*p == '\\')
            p++;
        else if (*p == '"')
            return p + 1;
    }
    return NULL;
}

/* Returns the end of the JSON value that begins at p, or NULL.  It finds ends; it does not validate. */
static const char *skip_value(const char *p, const char *end)
{
    const char *begin = p;
    if (p == end)
        return NULL;
    if (*p == '"')
        return skip_string(p, end);
    if (*p == '{' || *p == '[') {
        int depth = 0;
        while (p < end) {
            if (*p == '"') {
                p = skip_string(p, end);
                if (!p)
                    return NULL;
                continue;
            }
            if (*p == '{' || *p == '[')
                depth++;
            else if ((*p == '}' || *p == ']') && --depth == 0)
                return p + 1;
            p++;
        }
        return NULL;
    }
    while (p < end && *p != ',' && *p != '}' && *p != ' ' && *p != '\n' && *p != '\r' && *p != '\t')
        p++;
    return p == begin ? NULL : p;
}

/* Where a field of this name is to be kept; NULL: it does not matter. */
static struct span *slot_of(struct answer *answer, struct span key)
{
#define FIELD(name)                                                                            \
    if (key.len == sizeof(#name) + 1 && memcmp(key.at + 1, #name, sizeof(#name) - 1) == 0)     \
    return &answer->name
    FIELD(type);
    FIELD(content);
    FIELD(id);
    FIELD(timestamp);
    FIELD(echoed_by);
    FIELD(client_id);
    FIELD(from_client);
    FIELD(recipients);
#undef FIELD
    return NULL;
}

/*
 * Finds the top-level fields of a JSON object; false: it is none, or has a field twice.  A content that begins
 * with `expected` is taken to end there, which spares a walk through long contents; as what is expected is a
 * whole string or object, nothing longer can begin with it, and what follows is looked at anyway.
 */
static bool scan(struct span payload, struct span expected, struct answer *answer)
{
    const char *p = payload.at, *end = payload.at + payload.len;
    memset(answer, 0, sizeof *answer);
    p = skip_space(p, end);
    if (p == end || *p != '{')
        return false;
    p = skip_space(p + 1, end);
    if (p < end && *p == '}')
        return skip_space(p + 1, end) == end;
    for (;;) {
        const char *key = p;
        if (p == end || *p != '"' || !(p = skip_string(p, end)))
            return false;
        struct span *slot = slot_of(answer, (struct span){key, (size_t)(p - key)});
        p = skip_space(p, end);
        if (p == end || *p != ':')
            return false;
        p = skip_space(p + 1, end);
        const char *value = p;
        if (slot == &answer->content && expected.len && (size_t)(end - p) > expected.len &&
            memcmp(p, expected.at, expected.len) == 0)
            p += expected.len;
        else if (!(p = skip_value(p, end)))
            return false;
        if (slot) {
            if (slot->at)
                return false;
            *slot = (struct span){value, (size_t)(p - value)};
        }
        p = skip_space(p, end);
        if (p == end)
            return false;
        if (*p == '}')
            return skip_space(p + 1, end) == end;
        if (*p != ',')
            return false;
        p = skip_space(p + 1, end);
    }
}

/* ---- building requests ---- */

static void put_digits(char *at, uint64_t number, int digits)
{
    while (digits--) {
        at[digits] = (char)('0' + number % 10);
        number /= 10;
    }
}

/* Letters, digits and blanks that look different for each client; nothing that JSON would escape. */
static void put_filler(char *at, size_t len, unsigned client)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789";
    uint32_t state = client * 2654435761u + 12345u;
    for (size_t i = 0; i < len; i++) {
        state = state * 1664525u + 1013904223u;
        at[i] = letters[(state >> 16) % (sizeof letters - 1)];
    }
}

/* A JSON string of `chars` ASCII characters. */
static size_t text_content(char *at, size_t chars, unsigned client, size_t *digits_at)
{
    int used = sprintf(at, "\"c%04u s", client);
    *digits_at = (size_t)used;
    at[used + DIGITS] = ' ';
    size_t begun = (size_t)used + DIGITS + 1;
    put_filler(at + begun, chars + 1 - begun, client);
    at[chars + 1] = '"';
    return chars + 2;
}

/* An object of 120 bytes, written as compact JSON, two of whose strings are not ASCII. */
static size_t object_content(char *at, unsigned client, size_t *digits_at)
{
    static const char tail[] = "\",\"ok\":true,\"x\":12.5}";
    const size_t whole = 120, end = whole - (sizeof tail - 1);
    size_t used = (size_t)sprintf(at, "{\"seq\":1");
    *digits_at = used;
    used += DIGITS;
    used += (size_t)sprintf(at + used, ",\"who\":\"c%04u Zoë Müller\",\"text\":\"Grüße, 你好 ", client);
    if (used > end)
        die("the object content does not fit into its %zu bytes", whole);
    put_filler(at + used, end - used, client);
    memcpy(at + end, tail, sizeof tail - 1);
    return whole;
}

/* Builds the frames of one sender. */
static struct lane *make_lane(const struct options *opt, unsigned client)
{
    struct lane *lane = allocate(1, sizeof *lane);
    const char *type = opt->broadcast ? "broadcast" : "echo";
    const bool long_text = strcmp(opt->payload, "text10k") == 0, object = strcmp(opt->payload, "object") == 0;
    char *frame = allocate(1, LONG_TEXT + ANSWER_ROOM);
    char *p = frame + HEADER;
    p += sprintf(p, "{\"type\":\"%s\",", type);
    if (object) {
        p += sprintf(p, "\"id\":");
        lane->id_at = (size_t)(p - frame);
        p += sprintf(p, "1%04u", client);
        lane->id_digits_at = (size_t)(p - frame);
        p += DIGITS;
        *p++ = ',';
    }
    p += sprintf(p, "\"content\":");
    lane->content_at = (size_t)(p - frame);
    if (object)
        lane->content_len = object_content(p, client, &lane->content_digits_at);
    else
        lane->content_len = text_content(p, long_text ? LONG_TEXT : 100, client, &lane->content_digits_at);
    lane->content_digits_at += lane->content_at;
    p += lane->content_len;
    *p++ = '}';
    lane->frame_len = (size_t)(p - frame);
    uint32_t length = htonl((uint32_t)(lane->frame_len - HEADER));
    memcpy(frame, &length, HEADER);

    lane->window = opt->window;
    lane->ring = allocate(lane->window, lane->frame_len);
    for (size_t i = 0; i < lane->window; i++)
        memcpy(lane->ring + i * lane->frame_len, frame, lane->frame_len);
    if (opt->broadcast)
        lane->awaited = allocate(lane->window, sizeof *lane->awaited);
    free(frame);
    return lane;
}

static char *frame_of(const struct lane *lane, uint64_t seq)
{
    return lane->ring + (seq % lane->window) * lane->frame_len;
}

static struct span content_of(const struct lane *lane, uint64_t seq)
{
    return (struct span){frame_of(lane, seq) + lane->content_at, lane->content_len};
}

static struct span id_of(const struct lane *lane, uint64_t seq)
{
    return lane->id_at ? (struct span){frame_of(lane, seq) + lane->id_at, ID_LEN} : (struct span){NULL, 0};
}

/* ---- checking ---- */

static void check_field(const struct link *link, uint64_t seq, const char *what, struct span got,
                        struct span wanted, struct span payload)
{
    if (!same(got, wanted))
        wrong(link, seq, what, wanted, payload);
}

/* The id must come back where there was one, and none must appear where there was none. */
static void check_id(const struct link *link, uint64_t seq, const struct answer *answer, struct span payload)
{
    struct span wanted = id_of(link->lane, seq);
    if (wanted.at)
        check_field(link, seq, "wrong or missing id", answer->id, wanted, payload);
    else if (answer->id.at && !same(answer->id, text("null")))
        wrong(link, seq, "an id that was never sent", text("none"), payload);
}

static void check_timestamp(const struct link *link, uint64_t seq, const struct answer *answer,
                            struct span payload)
{
    if (answer->timestamp.len < 3 || answer->timestamp.at[0] != '"')
        wrong(link, seq, "no timestamp", text("a string"), payload);
}

static void take_welcome(struct bench *bench, struct link *link, struct span payload)
{
    struct answer answer;
    if (!scan(payload, (struct span){NULL, 0}, &answer))
        wrong(link, 0, "not a JSON object", text("welcome"), payload);
    check_field(link, 0, "the first frame is no welcome", answer.type, text("\"welcome\""), payload);
    if (answer.client_id.len < 3 || answer.client_id.len > sizeof bench->sender_id)
        wrong(link, 0, "no client_id in welcome", text("a string"), payload);
    if (link->lane) { /* only a broadcast, which has one sender, looks at it */
        memcpy(bench->sender_id, answer.client_id.at, answer.client_id.len);
        bench->sender_id_len = answer.client_id.len;
    }
    link->welcomed = true;
    bench->n_welcomed++;
}

static void take_echo(struct bench *bench, struct link *link, struct span payload)
{
    struct lane *lane = link->lane;
    uint64_t seq = link->got;
    struct span content = content_of(lane, seq);
    struct answer answer;
    if (seq == lane->queued)
        wrong(link, seq, "a frame that nobody asked for", text("silence"), payload);
    if (!scan(payload, content, &answer))
        wrong(link, seq, "not a JSON object", content, payload);
    check_field(link, seq, "wrong type", answer.type, text("\"echo_response\""), payload);
    check_field(link, seq, "wrong content", answer.content, content, payload);
    check_field(link, seq, "wrong echoed_by", answer.echoed_by, text("\"TCP Server\""), payload);
    check_timestamp(link, seq, &answer, payload);
    check_id(link, seq, &answer, payload);
    link->got++;
    lane->done++;
    bench->messages++;
    bench->deliveries++;
}

/* What the sender of broadcasts gets back. */
static void take_sent(struct bench *bench, struct link *link, struct span payload)
{
    struct lane *lane = link->lane;
    uint64_t seq = link->got;
    struct answer answer;
    char recipients[16];
    snprintf(recipients, sizeof recipients, "%u", bench->opt.clients);
    if (seq == lane->queued)
        wrong(link, seq, "a frame that nobody asked for", text("silence"), payload);
    if (!scan(payload, (struct span){NULL, 0}, &answer))
        wrong(link, seq, "not a JSON object", text("broadcast_sent"), payload);
    check_field(link, seq, "wrong type", answer.type, text("\"broadcast_sent\""), payload);
    check_field(link, seq, "wrong recipients", answer.recipients, text(recipients), payload);
    check_timestamp(link, seq, &answer, payload);
    check_id(link, seq, &answer, payload);
    link->got++;
    lane->awaited[seq % lane->window]--;
}

/* What a receiver of broadcasts gets. */
static void take_broadcast(struct bench *bench, struct link *link, struct span payload)
{
    struct lane *lane = bench->links[0].lane;
    uint64_t seq = link->got;
    struct span content = content_of(lane, seq);
    struct answer answer;
    if (seq == lane->queued)
        wrong(link, seq, "a frame that nobody asked for", text("silence"), payload);
    if (!scan(payload, content, &answer))
        wrong(link, seq, "not a JSON object", content, payload);
    check_field(link, seq, "wrong type", answer.type, text("\"broadcast\""), payload);
    check_field(link, seq, "wrong content", answer.content, content, payload);
    check_field(link, seq, "wrong or missing from_client", answer.from_client,
                (struct span){bench->sender_id, bench->sender_id_len}, payload);
    check_timestamp(link, seq, &answer, payload);
    if (answer.id.at)
        wrong(link, seq, "the sender's id was relayed", text("no id"), payload);
    link->got++;
    lane->awaited[seq % lane->window]--;
    bench->deliveries++;
}

static void take_frame(struct bench *bench, struct link *link, struct span payload)
{
    if (!link->welcomed)
        take_welcome(bench, link, payload);
    else if (!bench->opt.broadcast)
        take_echo(bench, link, payload);
    else if (link->lane)
        take_sent(bench, link, payload);
    else
        take_broadcast(bench, link, payload);
}

/* ---- sockets ---- */

/* Puts as many new messages into the ring as the window and the quota grant. */
static void fill_window(struct bench *bench, struct lane *lane)
{
    while (bench->sending && bench->quota && lane->queued - lane->done < lane->window) {
        char *frame = frame_of(lane, lane->queued);
        put_digits(frame + lane->content_digits_at, lane->queued, DIGITS);
        if (lane->id_at)
            put_digits(frame + lane->id_digits_at, lane->queued, DIGITS);
        if (lane->awaited)
            lane->awaited[lane->queued % lane->window] = bench->opt.clients + 1;
        lane->queued++;
        bench->quota--;
    }
}

/* Sends what of the ring was not sent yet, in one call as a rule. */
static void flush_lane(struct link *link)
{
    struct lane *lane = link->lane;
    const size_t ring_len = lane->window * lane->frame_len;
    uint64_t due;
    while ((due = lane->queued * lane->frame_len - lane->sent) > 0) {
        size_t at = lane->sent % ring_len;
        size_t first = due < ring_len - at ? due : ring_len - at;
        struct iovec parts[2] = {{lane->ring + at, first}, {lane->ring, due - first}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = due > first ? 2 : 1};
        ssize_t taken = sendmsg(link->fd, &message, MSG_NOSIGNAL);
        if (taken < 0 && errno == EAGAIN)
            return; /* edge-triggered epoll says when there is room */
        if (taken < 0)
            die("client %u: send: %s", link->number, strerror(errno));
        lane->sent += (uint64_t)taken;
    }
}

/* Hands out the whole frames of the buffer and keeps the rest. */
static void take_frames(struct bench *bench, struct link *link)
{
    size_t at = 0;
    while (link->held - at >= HEADER) {
        uint32_t length;
        memcpy(&length, link->buffer + at, HEADER);
        length = ntohl(length);
        if (length > link->room - HEADER)
            die("client %u: a frame of %u bytes after %llu answers", link->number, length,
                (unsigned long long)link->got);
        if (link->held - at - HEADER < length)
            break;
        take_frame(bench, link, (struct span){link->buffer + at + HEADER, length});
        at += HEADER + length;
    }
    link->held -= at;
    if (at && link->held)
        memmove(link->buffer, link->buffer + at, link->held);
}

/* Reads until the socket is empty; an echo client refills its window after each read. */
static void serve_link(struct bench *bench, struct link *link)
{
    for (;;) {
        size_t space = link->room - link->held;
        ssize_t got = recv(link->fd, link->buffer + link->held, space, 0);
        if (got < 0 && errno == EAGAIN)
            break;
        if (got < 0)
            die("client %u: recv: %s", link->number, strerror(errno));
        if (got == 0)
            die("client %u: the server closed the connection after %llu answers", link->number,
                (unsigned long long)link->got);
        link->held += (size_t)got;
        take_frames(bench, link);
        if (link->lane && !bench->opt.broadcast) {
            fill_window(bench, link->lane);
            flush_lane(link);
        }
        if ((size_t)got < space)
            break; /* a short read emptied the socket; what comes later is a new edge */
    }
    if (link->lane)
        flush_lane(link);
}

/* After a round of events: counts the broadcasts that reached everybody, and sends the next ones at once. */
static void advance_broadcast(struct bench *bench)
{
    struct link *sender = &bench->links[0];
    struct lane *lane = sender->lane;
    while (lane->done < lane->queued && lane->awaited[lane->done % lane->window] == 0) {
        lane->done++;
        bench->messages++;
    }
    fill_window(bench, lane);
    flush_lane(sender);
}

/* One round of events; false: nothing happened for long. */
static bool turn(struct bench *bench)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(bench->epoll, events, EVENTS, STALL_MS);
    if (count < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        serve_link(bench, events[i].data.ptr);
    return count != 0;
}

static void open_link(struct bench *bench, struct link *link, unsigned number, bool sends)
{
    const struct options *opt = &bench->opt;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt->port)};
    const int on = 1;
    link->number = number;
    if (inet_pton(AF_INET, opt->host, &address.sin_addr) != 1)
        die("not an IPv4 address: %s", opt->host);
    link->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (link->fd < 0 || connect(link->fd, (struct sockaddr *)&address, sizeof address))
        die("client %u: connect to %s:%u: %s", number, opt->host, opt->port, strerror(errno));
    if (setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) || fcntl(link->fd, F_SETFL, O_NONBLOCK))
        die("client %u: %s", number, strerror(errno));
    if (sends)
        link->lane = make_lane(opt, number);
    const struct lane *lane = sends ? link->lane : bench->links[0].lane;
    link->room = lane->window * (lane->frame_len + ANSWER_ROOM);
    if (link->room < WELCOME_ROOM)
        link->room = WELCOME_ROOM;
    link->buffer = allocate(1, link->room);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = link};
    if (epoll_ctl(bench->epoll, EPOLL_CTL_ADD, link->fd, &event))
        die("client %u: epoll_ctl: %s", number, strerror(errno));
}

/* Opens all connections and waits for their welcomes: only then does a connection count for the server. */
static void open_all(struct bench *bench)
{
    const struct options *opt = &bench->opt;
    bench->n_links = opt->broadcast ? opt->clients + 1 : opt->clients;
    bench->links = allocate(bench->n_links, sizeof *bench->links);
    bench->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (bench->epoll < 0)
        die("epoll_create1: %s", strerror(errno));
    for (unsigned i = 0; i < bench->n_links; i++)
        open_link(bench, &bench->links[i], i, i == 0 || !opt->broadcast);
    while (bench->n_welcomed < bench->n_links)
        if (!turn(bench))
            die("%zu of %zu connections got a welcome", bench->n_welcomed, bench->n_links);
}

/* ---- the run ---- */

static bool in_flight(const struct bench *bench)
{
    for (size_t i = 0; i < bench->n_links; i++)
        if (bench->links[i].lane && bench->links[i].lane->done < bench->links[i].lane->queued)
            return true;
    return false;
}

static void stalled(const struct bench *bench)
{
    uint64_t queued = bench->links[0].lane->queued;
    for (size_t i = 0; i < bench->n_links; i++) {
        const struct link *link = &bench->links[i];
        if (link->got < (link->lane ? link->lane->queued : queued))
            die("MISSING ANSWER: client %u waits for message %llu; nothing came for %d s", link->number,
                (unsigned long long)link->got, STALL_MS / 1000);
    }
    die("stalled");
}

/* Sends for so many seconds or messages, then waits for the answers under way.  Returns the time it took. */
static double run_phase(struct bench *bench, double seconds, uint64_t limit)
{
    double begin = clock_seconds(CLOCK_MONOTONIC);
    alarm((unsigned)seconds + SLACK_SECONDS);
    bench->messages = bench->deliveries = 0;
    bench->quota = limit;
    bench->sending = seconds > 0;
    for (size_t i = 0; i < bench->n_links; i++)
        if (bench->links[i].lane) {
            fill_window(bench, bench->links[i].lane);
            flush_lane(&bench->links[i]);
        }
    while ((bench->sending && bench->quota) || in_flight(bench)) {
        if (!turn(bench))
            stalled(bench);
        if (bench->opt.broadcast)
            advance_broadcast(bench);
        if (clock_seconds(CLOCK_MONOTONIC) - begin >= seconds)
            bench->sending = false;
    }
    return clock_seconds(CLOCK_MONOTONIC) - begin;
}

/* Waits for a line on stdin; false: it has ended. */
static bool wait_for_line(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[64];
    if (poll(&input, 1, WAIT_MS) <= 0)
        die("the runner said nothing");
    return read(STDIN_FILENO, line, sizeof line) > 0;
}

/* ---- arguments ---- */

static void usage(const char *problem) __attribute__((noreturn));

static void usage(const char *problem)
{
    fprintf(stderr,
            "loadgen: %s\n"
            "usage: loadgen echo|broadcast --port P --clients N --window W [--payload text100|text10k|object]\n"
            "               [--host ADDRESS] [--seconds S] [--warmup S] [--limit MESSAGES]\n",
            problem);
    exit(2);
}

static double number_of(const char *word, double least, double most)
{
    char *end;
    double value = strtod(word, &end);
    if (end == word || *end || !(value >= least && value <= most))
        usage("a number is missing or out of its range");
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"host", required_argument, NULL, 'h'},    {"port", required_argument, NULL, 'p'},
        {"clients", required_argument, NULL, 'c'}, {"window", required_argument, NULL, 'w'},
        {"payload", required_argument, NULL, 'k'}, {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'u'},  {"limit", required_argument, NULL, 'l'},
        {NULL, 0, NULL, 0},
    };
    struct options opt = {.host = "127.0.0.1", .clients = 1, .window = 1, .payload = "text100",
                          .seconds = 1, .warmup = 0.2, .limit = 100000000};
    int letter;
    if (argc < 2 || (strcmp(argv[1], "echo") && strcmp(argv[1], "broadcast")))
        usage("the first argument is echo or broadcast");
    opt.broadcast = strcmp(argv[1], "broadcast") == 0;
    optind = 2;
    while ((letter = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (letter) {
        case 'h': opt.host = optarg; break;
        case 'p': opt.port = (unsigned)number_of(optarg, 1, 65535); break;
        case 'c': opt.clients = (unsigned)number_of(optarg, 1, MAX_CLIENTS); break;
        case 'w': opt.window = (unsigned)number_of(optarg, 1, MAX_WINDOW); break;
        case 'k': opt.payload = optarg; break;
        case 's': opt.seconds = number_of(optarg, 0.001, 600); break;
        case 'u': opt.warmup = number_of(optarg, 0, 600); break;
        case 'l': opt.limit = (uint64_t)number_of(optarg, 1, 1e8); break;
        default: usage("an unknown option");
        }
    }
    if (optind != argc)
        usage("too many arguments");
    if (!opt.port)
        usage("--port is missing");
    if (strcmp(opt.payload, "text100") && strcmp(opt.payload, "text10k") && strcmp(opt.payload, "object"))
        usage("an unknown payload");
    return opt;
}

int main(int argc, char **argv)
{
    struct bench bench = {.opt = parse(argc, argv)};
    alarm(SLACK_SECONDS);
    open_all(&bench);
    run_phase(&bench, bench.opt.warmup, bench.opt.limit);
    puts("READY");
    fflush(stdout);
    while (wait_for_line()) {
        double cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
        double seconds = run_phase(&bench, bench.opt.seconds, bench.opt.limit);
        cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        printf("{\"messages\":%llu,\"deliveries\":%llu,\"seconds\":%.6f,\"cpu_seconds\":%.6f}\n",
               (unsigned long long)bench.messages, (unsigned long long)bench.deliveries, seconds, cpu);
        fflush(stdout);
    }
    return 0;
}
