// What each RPC asks of its caller: the one table of it.
#ifndef ADAPTERD_SERVICE_ACCESS_METHOD_RULES_H_
#define ADAPTERD_SERVICE_ACCESS_METHOD_RULES_H_

#include <span>
#include <string_view>

#include "service/access/caller.h"

namespace adapterd {

struct MethodRule {
  std::string_view service;  // "adapterd.v1.AdapterService"
  std::string_view method;   // "LoadAdapter"
  Role role;                 // the least that may call it
  bool changes;              // what the server holds or writes; such calls are audited
};

// Of every RPC of the API.
std::span<const MethodRule> MethodRules();

// nullptr for an RPC without a rule, which nobody may call.
const MethodRule* FindMethodRule(std::string_view service, std::string_view method);

}  // namespace adapterd

#endif  // ADAPTERD_SERVICE_ACCESS_METHOD_RULES_H_
