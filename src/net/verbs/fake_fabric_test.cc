#include "net/verbs/fake_fabric.h"
