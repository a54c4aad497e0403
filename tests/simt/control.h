// What tests may set on the emulated device. For C and C++.
#ifndef FLUTE_SIMT_CONTROL_H
#define FLUTE_SIMT_CONTROL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void simt_set_sms(int n_sms);                   // SMs that the device claims; 2 at first
void simt_set_devices(int n_devices);           // devices that the driver claims; 1 at first
void simt_set_memory(size_t bytes);             // memory of the device; 1 GiB at first
void simt_set_capability(int major, int minor); // 9, 0 at first; also before main() begins

// The version that the kernels claim to be compiled for: 80, 86, …; 0, which is at first, the device's, or 90
// on later ones. Code for 9.0 runs on no device before it; code for 8.x has no mbarriers and does not
// overlap.
void simt_set_code(int version);

// The n-th allocation (of device or pinned memory) or launch (of a kernel or graph) from now fails, once: 1
// is the next one, 0 none.
void simt_fail_allocation(int n);
void simt_fail_launch(int n);

size_t simt_allocated(void); // bytes of device and pinned memory now allocated
long simt_launches(void);    // kernels run so far

// A kernel that takes this many seconds of processor time is taken for one that never ends; 60 at first.
void simt_set_patience(int seconds);

// How threads and asynchronous copies interleave is drawn from this seed (and the number of the launch).
void simt_set_seed(unsigned seed);

#ifdef __cplusplus
}
#endif
#endif
