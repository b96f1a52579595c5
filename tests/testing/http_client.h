// As much of an HTTP client as tests need.
#ifndef ADAPTERD_TESTS_TESTING_HTTP_CLIENT_H_
#define ADAPTERD_TESTS_TESTING_HTTP_CLIENT_H_

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace adapterd {

// A TCP socket on the loopback interface. Throws when that cannot be had.
class LoopbackSocket {
 public:
  LoopbackSocket() : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (fd_ < 0) throw std::runtime_error("socket");
  }
  ~LoopbackSocket() { close(fd_); }
  LoopbackSocket(const LoopbackSocket&) = delete;
  LoopbackSocket& operator=(const LoopbackSocket&) = delete;

  // Listens on a port that the system picks, and gives it. With `share`, others that share too may
  // listen there as well.
  int Listen(bool share) {
    const int yes = 1;
    if (share) setsockopt(fd_, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof(yes));
    sockaddr_in address = Address(0);
    socklen_t size = sizeof(address);
    if (bind(fd_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd_, 1) != 0 ||
        getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      throw std::runtime_error("listen");
    }
    return ntohs(address.sin_port);
  }

  // Sends all of `request` to a port and reads until the other side closes.
  std::string Exchange(int port, const std::string& request) {
    const sockaddr_in address = Address(port);
    if (connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        send(fd_, request.data(), request.size(), MSG_NOSIGNAL) !=
            static_cast<ssize_t>(request.size())) {
      throw std::runtime_error("connect");
    }
    std::string reply;
    char buffer[4096];
    for (ssize_t count; (count = recv(fd_, buffer, sizeof(buffer), 0)) > 0;) {
      reply.append(buffer, count);
    }
    return reply;
  }

 private:
  static sockaddr_in Address(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  const int fd_;
};

struct HttpReply {
  int status = 0;
  std::string head;
  std::string body;
};

inline HttpReply HttpRequest(int port, const std::string& method, const std::string& path) {
  const std::string text =
      LoopbackSocket().Exchange(port, method + " " + path +
                                          " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                          "Content-Length: 0\r\n\r\n");
  HttpReply reply;
  const size_t end = text.find("\r\n\r\n");
  reply.head = text.substr(0, end);
  if (end != std::string::npos) reply.body = text.substr(end + 4);
  if (text.size() > 12) reply.status = std::stoi(text.substr(9, 3));
  return reply;
}

}  // namespace adapterd

#endif  // ADAPTERD_TESTS_TESTING_HTTP_CLIENT_H_
