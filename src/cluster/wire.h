#pragma once
/// Between the cluster's own types and the messages of rpc/recua.proto.
///
/// From the wire: every enum, count and length is checked; kProtocol names the field.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "cluster/slice_weights.h"
#include "model/slice.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "rpc/handshake.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

void to_wire(const TensorSpec& spec, wire::Tensor& out);
Result<TensorSpec> from_wire(const wire::Tensor& tensor);

void to_wire(const model::Slice& slice, wire::Slice& out);
Result<model::Slice> from_wire(const wire::Slice& slice);

void to_wire(const model::SliceOptions& options, wire::SliceOptions& out);
Result<model::SliceOptions> from_wire(const wire::SliceOptions& options);

std::string secret_to_wire(const rpc::Secret& secret);
Result<rpc::Secret> secret_from_wire(const std::string& bytes);

/// Where a peer wants us to connect to. message: which of its messages says so, for the error.
Result<net::Endpoint> endpoint_from_wire(std::string_view message, const std::string& host,
                                         std::uint32_t port);

}  // namespace recua::cluster
