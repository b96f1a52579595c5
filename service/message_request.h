// A DataRequest between two messages.
#ifndef ADAPTERD_SERVICE_MESSAGE_REQUEST_H_
#define ADAPTERD_SERVICE_MESSAGE_REQUEST_H_

#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "service/data_request.h"
#include "service/tensor_message.h"

namespace adapterd {

// What derived classes add is how a response is made of a request.
template <typename RequestMessage, typename ResponseMessage>
class MessageRequest : public DataRequest {
 public:
  using Request = TensorMessage<RequestMessage>;
  using Response = TensorMessage<ResponseMessage>;
  // Fills in the request, where it will be worked on.
  using Read = absl::AnyInvocable<absl::Status(Request&)>;
  // Called once, on the last thread that worked on it.
  using Done = absl::AnyInvocable<void(absl::StatusOr<Response>)>;

  MessageRequest(DataPlane& plane, absl::Time deadline, Read read, Done done)
      : DataRequest(plane, deadline), read_(std::move(read)), done_(std::move(done)) {}

 protected:
  absl::Status ReadRequest() { return read_(request_); }
  Request& request() { return request_; }
  Response& response() { return response_; }
  // Lets go of buffers that are in neither message.
  virtual void DropBuffers() {}

 private:
  void Answer(const absl::Status& status) final {
    request_ = {};
    DropBuffers();
    Release();
    if (status.ok()) {
      done_(std::move(response_));
    } else {
      response_ = {};
      done_(status);
    }
    read_ = nullptr;  // both hold the call, which holds this
    done_ = nullptr;
  }

  Read read_;
  Done done_;
  Request request_;
  Response response_;
};

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_MESSAGE_REQUEST_H_
