// The transport alone: a server that sends back the bytes it was sent.
#ifndef ADAPTERD_BENCH_ECHO_SERVER_H_
#define ADAPTERD_BENCH_ECHO_SERVER_H_

namespace adapterd::bench {

// Hidden argument that makes the binary an echo server.
inline constexpr char kEchoServerFlag[] = "--echo-server";

// Request header: how many bytes the reply must have. adapterd ignores it; it is sent to both, so
// that both read the same headers.
inline constexpr char kReplyBytesHeader[] = "x-bench-reply-bytes";

// Serves ApplyProjection on a free loopback port, as raw buffers: the reply is the request's own
// bytes, not copied, cut or padded with zeros to the size asked for. Channel arguments and API are
// those of the server. Says where it listens as the server does; returns only if it cannot serve.
int RunEchoServer();

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ECHO_SERVER_H_
