#pragma once
/// RecordingConnection: passes everything through and keeps a copy of both directions' bytes, for
/// the transcripts of released versions (tests/golden/transcripts) and for looking at a failing
/// session. Threads: as the Connection inside; the transcript is read after it is closed.

#include <memory>
#include <vector>

#include "net/connection.h"

namespace recua::net {

struct Transcript {
  std::vector<std::byte> sent;
  std::vector<std::byte> received;
};

/// inner's stream, recorded into transcript, which may outlive it.
std::unique_ptr<Connection> record(std::unique_ptr<Connection> inner,
                                   std::shared_ptr<Transcript> transcript);

}  // namespace recua::net
