#pragma once
/// RECUA_CHECK(condition): our own invariants. A failed one is a bug: one clear line, then abort.
/// It stays on in release builds. RECUA_DCHECK is for hot loops and is off there.
/// Never put bytes from a file, a peer or a user through a CHECK: they are parsed into a Result.

namespace recua {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}  // namespace recua

#define RECUA_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::recua::check_failed(#condition, __FILE__, __LINE__))

#ifdef NDEBUG
#define RECUA_DCHECK(condition) void(0)
#else
#define RECUA_DCHECK(condition) RECUA_CHECK(condition)
#endif
