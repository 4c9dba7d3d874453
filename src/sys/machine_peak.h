#pragma once
/// What this machine has to give: how fast its threads read memory, and how fast they multiply and
/// add when nothing else is to do. Kernels are measured against it.
///
/// Of products the best of the runs that fit into the time counts: whatever else the machine does
/// only makes a run slower. Of memory, which others share all the time, their median does, so that
/// what is measured against it may be a little faster at another moment. Threads:
/// those of the pool, all at once, as the kernels use them.

#include <chrono>
#include <cstddef>
#include <span>

#include "sys/thread_pool.h"

namespace recua::sys {

/// Instructions by which kernels sum products.
enum class MultiplyAdd {
  kFma256,       // vfmadd on 8 f32.
  kFma512,       // vfmadd on 16 f32: as many per cycle on some processors, half as many on others.
  kBytesBy4,     // Four vpmaddubsw are added in 16 bits, then widened: 128 products.
  kBytesBy8,     // Eight of them: 256 products.
  kWords256,     // vpmaddwd, vpaddd: 16 products of 16 bits.
  kDotBytes512,  // vpdpbusd: 64 products of bytes.
};

/// Whether this CPU has the instructions.
bool supported(MultiplyAdd sequence);

/// Products that are summed per second, from registers to registers. Needs supported(sequence).
double multiply_adds_per_second(MultiplyAdd sequence, ThreadPool& pool,
                                std::chrono::duration<double> at_least);

/// Bytes read per second, each thread its part from front to back, in the way that is the fastest
/// here (what is asked for ahead of the loads differs). For the speed of memory `bytes`
/// must be larger than the caches, and written before (else all pages are the same zero page).
double read_bytes_per_second(std::span<const std::byte> bytes, ThreadPool& pool,
                             std::chrono::duration<double> at_least);

}  // namespace recua::sys
