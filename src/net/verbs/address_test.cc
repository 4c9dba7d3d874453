#include "net/verbs/address.h"
