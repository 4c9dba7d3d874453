#include "train/team.h"

#include "base/bytes.h"

namespace recua::train {

Result<FloatBuffer> FloatBuffer::allocate(std::size_t n) {
  const auto bytes = checked_mul(n, sizeof(float));
  if (!bytes) return Error{ErrorCode::kResourceExhausted, "more memory than there can be"};
  RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer memory, sys::AlignedBuffer::allocate(*bytes));
  return FloatBuffer(std::move(memory), n);
}

Result<Team> Team::create(std::size_t n_threads, sys::InstructionSet set) {
  Team team;
  team.pool_ = std::make_unique<sys::ThreadPool>(n_threads);
  team.kernels_ = &kernels::kernel_table(set);
  RECUA_ASSIGN_OR_RETURN(team.gemm_scratch_,
                         FloatBuffer::allocate(n_threads * kernels::kGemmScratchFloats));
  return team;
}

// The longer side is cut, so that each thread packs a part of one matrix and all of the smaller.
void Team::gemm(const kernels::GemmArgs& args) {
  const bool by_rows = args.m >= args.n;
  pool_->run([&](std::size_t thread, std::size_t n_threads) {
    const sys::Partition part = by_rows
                                    ? sys::partition(args.m, thread, n_threads, kernels::kGemmCutM)
                                    : sys::partition(args.n, thread, n_threads, kernels::kGemmCutN);
    if (part.empty()) return;
    kernels::GemmArgs own = args;
    own.scratch = gemm_scratch(thread);
    if (by_rows) {
      own.a.data += part.begin * (args.a.transposed ? 1 : args.a.stride);
      own.c += part.begin * args.c_stride;
      own.m = part.size();
    } else {
      own.b.data += part.begin * (args.b.transposed ? args.b.stride : 1);
      own.c += part.begin;
      own.n = part.size();
    }
    kernels_->gemm(own);
  });
}

}  // namespace recua::train
