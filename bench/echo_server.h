// The transport alone: a server that sends back the bytes it was sent.
#ifndef ADAPTERD_BENCH_ECHO_SERVER_H_
#define ADAPTERD_BENCH_ECHO_SERVER_H_

#include <string>

namespace adapterd::bench {

// Hidden argument that makes the binary an echo server; the path of its Unix socket follows.
inline constexpr char kEchoServerFlag[] = "--echo-server";

// Request header: how many bytes the reply must have. adapterd ignores it; it is sent to both, so
// that both read the same headers.
inline constexpr char kReplyBytesHeader[] = "x-bench-reply-bytes";

// Serves ApplyProjection, StreamProjections and Merge on a free loopback port and on a Unix socket,
// as raw buffers: a reply is the request's own bytes, not copied, cut or padded with zeros to the
// size asked for. Channel arguments and API are those of the server. Says where it listens as the
// server does; returns only if it cannot serve.
int RunEchoServer(const std::string& unix_socket);

}  // namespace adapterd::bench

#endif  // ADAPTERD_BENCH_ECHO_SERVER_H_
