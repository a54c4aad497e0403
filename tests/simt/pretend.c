// Linked into a test: makes the emulated device one of compute capability 8.SIMT_MINOR before main() begins.
#include "tests/simt/control.h"

__attribute__((constructor)) static void pretend(void) {
    simt_set_capability(8, SIMT_MINOR);
}
