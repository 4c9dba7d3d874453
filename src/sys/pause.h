#pragma once
/// A short rest for a thread that polls: it leaves the core's other thread and the memory bus
/// alone, and does not go to the kernel where there is an instruction for it.

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <thread>
#endif

namespace recua::sys {

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();  // 20 to 60 ns on the CPUs of the last ten years.
#else
  std::this_thread::yield();
#endif
}

}  // namespace recua::sys
