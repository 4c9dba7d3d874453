#pragma once
/// The command line's App by name only: its header takes seconds to compile, and most files here
/// do not need it.

namespace CLI {  // NOLINT(readability-identifier-naming): its name
class App;
}
