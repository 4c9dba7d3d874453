#include "rpc/message_name.h"

namespace recua::rpc {

// Without a default, so that the compiler asks for what a new message is called.
std::string_view message_name(wire::ControlMessage::BodyCase body) {
  using Body = wire::ControlMessage;
  switch (body) {
    case Body::kError:
      return "error";
    case Body::kDone:
      return "done";
    case Body::kLoadSlice:
      return "load_slice";
    case Body::kLoadProgress:
      return "load_progress";
    case Body::kLoaded:
      return "loaded";
    case Body::kFetchChunk:
      return "fetch_chunk";
    case Body::kChunk:
      return "chunk";
    case Body::kOpenChannel:
      return "open_channel";
    case Body::kChannelOpened:
      return "channel_opened";
    case Body::kStartSession:
      return "start_session";
    case Body::kCloseSession:
      return "close_session";
    case Body::kSessionFailed:
      return "session_failed";
    case Body::kLinkReport:
      return "link_report";
    case Body::kSessionClosed:
      return "session_closed";
    case Body::kOpenEcho:
      return "open_echo";
    case Body::kOpenWeights:
      return "open_weights";
    case Body::kOpenTraining:
      return "open_training";
    case Body::kTrainState:
      return "train_state";
    case Body::kTrainStep:
      return "train_step";
    case Body::kTrainGradient:
      return "train_gradient";
    case Body::kMeasureSpeed:
      return "measure_speed";
    case Body::kSpeedMeasured:
      return "speed_measured";
    case Body::kMeasureLink:
      return "measure_link";
    case Body::kLinkMeasured:
      return "link_measured";
    case Body::BODY_NOT_SET:
      break;
  }
  return "an empty message";
}

}  // namespace recua::rpc
