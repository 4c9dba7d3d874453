#pragma once
/// Result<T>: a value, or an Error that says what went wrong and where.
///
/// For whatever may fail although our code is right: files, peers, requests, devices. A bug is a
/// RECUA_CHECK instead (base/check.h). Both types are [[nodiscard]]: a dropped error is a warning.

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "base/check.h"

namespace recua {

/// What a caller may branch on. The sentence in Error::message is for people. The numbers travel in
/// failure messages (docs/protocol.md): new codes go to the end.
enum class ErrorCode {
  kInvalidArgument,    // A flag, request or parameter is wrong: the command line exits with 2.
  kNotFound,           // A file, tensor, key or model is not there.
  kCorrupt,            // Bytes of a file or a peer break their format.
  kUnsupported,        // Well-formed, but we cannot do it.
  kResourceExhausted,  // No memory, page, slot or space; may work later.
  kIo,                 // The operating system said no.
  kUnavailable,        // A peer cannot be reached or is gone.
  kTimeout,            // A deadline passed.
  kProtocol,           // A peer broke the rules of docs/protocol.md.
  kCachesLost,         // A plan's caches are gone: replay the sequences' tokens (model/executor.h).
  kCancelled,          // The caller gave up.
};

std::string_view to_string(ErrorCode code);

struct [[nodiscard]] Error {
  Error() = default;
  /// Cold, as passed_on() is: what leads here is laid out away from what runs each time.
  [[gnu::cold]] Error(ErrorCode code, std::string message);

  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;

  /// The same error with "context: " in front of its sentence.
  Error within(std::string_view context) && {
    message = std::string(context) + ": " + message;
    return std::move(*this);
  }
};

/// An error on its way to the caller's caller.
[[gnu::cold]] Error passed_on(Error&& error);

template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;

  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(*-explicit-*)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(*-explicit-*)
  /// Converts from what T converts from, so that `return make_unique<Derived>()` works.
  template <class U>
    requires(std::is_convertible_v<U &&, T> && !std::is_same_v<std::remove_cvref_t<U>, T> &&
             !std::is_same_v<std::remove_cvref_t<U>, Error> &&
             !std::is_same_v<std::remove_cvref_t<U>, Result<T>>)
  Result(U&& value) : state_(std::in_place_index<0>, std::forward<U>(value)) {}  // NOLINT

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    RECUA_CHECK(ok());
    return std::get<0>(state_);
  }
  const T& value() const& {
    RECUA_CHECK(ok());
    return std::get<0>(state_);
  }
  T&& value() && {
    RECUA_CHECK(ok());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  Error& error() & {
    RECUA_CHECK(!ok());
    return std::get<1>(state_);
  }
  const Error& error() const& {
    RECUA_CHECK(!ok());
    return std::get<1>(state_);
  }
  Error&& error() && {
    RECUA_CHECK(!ok());
    return std::get<1>(std::move(state_));
  }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(*-explicit-*)

  [[nodiscard]] bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  Error& error() & {
    RECUA_CHECK(!ok());
    return *error_;
  }
  const Error& error() const& {
    RECUA_CHECK(!ok());
    return *error_;
  }
  Error&& error() && {
    RECUA_CHECK(!ok());
    return *std::move(error_);
  }

 private:
  std::optional<Error> error_;
};

/// Success of a Result<void>, for functions that end with it.
inline Result<void> ok() { return {}; }

}  // namespace recua

#define RECUA_CONCAT_(a, b) a##b
#define RECUA_CONCAT(a, b) RECUA_CONCAT_(a, b)

/// RECUA_ASSIGN_OR_RETURN(Type name, expression): declares name, or returns the error.
/// In coroutines use RECUA_CO_ASSIGN_OR_RETURN.
#define RECUA_ASSIGN_OR_RETURN_(return_, tmp, decl, ...)             \
  auto tmp = (__VA_ARGS__);                                          \
  if (!tmp.ok()) return_ ::recua::passed_on(std::move(tmp).error()); \
  decl = std::move(tmp).value()
#define RECUA_ASSIGN_OR_RETURN(decl, ...) \
  RECUA_ASSIGN_OR_RETURN_(return, RECUA_CONCAT(result_, __LINE__), decl, __VA_ARGS__)
#define RECUA_CO_ASSIGN_OR_RETURN(decl, ...) \
  RECUA_ASSIGN_OR_RETURN_(co_return, RECUA_CONCAT(result_, __LINE__), decl, __VA_ARGS__)

/// RECUA_RETURN_IF_ERROR(expression): returns the error of a Result of any type.
#define RECUA_RETURN_IF_ERROR_(return_, ...)                       \
  do {                                                             \
    if (auto recua_result = (__VA_ARGS__); !recua_result.ok())     \
      return_ ::recua::passed_on(std::move(recua_result).error()); \
  } while (false)
#define RECUA_RETURN_IF_ERROR(...) RECUA_RETURN_IF_ERROR_(return, __VA_ARGS__)
#define RECUA_CO_RETURN_IF_ERROR(...) RECUA_RETURN_IF_ERROR_(co_return, __VA_ARGS__)
