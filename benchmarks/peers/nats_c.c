/* What is possible without an interpreter: nats.c, with pull requests that overlap, and an ack of each message.
 *
 * Run as `nats-c-peer URL STREAM DURABLE SUBJECT`. Prints a line when it is subscribed; SIGTERM ends it, and then
 * it prints how many messages it acknowledged. Bodies are not decoded.
 */
#include <nats/nats.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW 1024
#define EXPIRES "30000000000"

static char next_subject[512];
static char inbox[64];
static long acked = 0;
static int requested = 0;

static void check(natsStatus status, const char *what)
{
    if (status != NATS_OK)
    {
        fprintf(stderr, "%s: %s\n", what, natsStatus_GetText(status));
        exit(1);
    }
}

static void refill(natsConnection *connection)
{
    char request[96];
    int batch = WINDOW - requested;

    if (batch <= 0)
        return;
    requested += batch;
    snprintf(request, sizeof(request), "{\"batch\": %d, \"expires\": " EXPIRES "}", batch);
    check(natsConnection_PublishRequestString(connection, next_subject, inbox, request), "pull request");
}

/* Runs in the subscription's own thread, one message at a time. */
static void on_message(natsConnection *connection, natsSubscription *subscription, natsMsg *message, void *closure)
{
    const char *reply = natsMsg_GetReply(message);
    const char *pending = NULL;

    (void)subscription;
    (void)closure;
    if (reply != NULL && strncmp(reply, "$JS.ACK.", 8) == 0)
    {
        check(natsConnection_Publish(connection, reply, NULL, 0), "ack");
        acked++;
        requested--;
        if (requested <= WINDOW / 2)
            refill(connection);
    }
    else if (natsMsgHeader_Get(message, "Nats-Pending-Messages", &pending) == NATS_OK)
    {
        /* Of a request that has ended, what wasn't delivered is to be asked for again. */
        requested -= atoi(pending);
        refill(connection);
    }
    natsMsg_Destroy(message);
}

int main(int argc, char **argv)
{
    natsConnection *connection = NULL;
    natsSubscription *subscription = NULL;
    natsInbox *name = NULL;
    sigset_t signals;
    int signal_number = 0;

    if (argc != 5)
    {
        fprintf(stderr, "usage: %s URL STREAM DURABLE SUBJECT\n", argv[0]);
        return 2;
    }
    /* Before the library makes its threads, so that no other takes it. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);

    snprintf(next_subject, sizeof(next_subject), "$JS.API.CONSUMER.MSG.NEXT.%s.%s", argv[2], argv[3]);
    check(natsConnection_ConnectTo(&connection, argv[1]), "connect");
    check(natsInbox_Create(&name), "inbox");
    snprintf(inbox, sizeof(inbox), "%s", name);
    check(natsConnection_Subscribe(&subscription, connection, inbox, on_message, NULL), "subscribe");
    check(natsSubscription_SetPendingLimits(subscription, -1, -1), "limits");
    refill(connection);
    check(natsConnection_Flush(connection), "flush");
    printf("ready\n");
    fflush(stdout);

    sigwait(&signals, &signal_number);
    check(natsSubscription_Unsubscribe(subscription), "unsubscribe");
    check(natsConnection_Flush(connection), "flush");
    natsConnection_Close(connection);
    printf("%ld\n", acked);
    return 0;
}
