// The memory of the emulated device: allocations and copies.
#include "tests/simt/device.h"

#include <string.h>
#include <sys/mman.h>

namespace simt {

const std::pair<const uintptr_t, allocation> *allocation_below(const void *p) {
    auto next = d.allocations.upper_bound((uintptr_t)p);
    return next == d.allocations.begin() ? nullptr : &*--next;
}

const allocation *allocation_of(const void *p, size_t bytes) {
    const auto *a = allocation_below(p);
    return a && (uintptr_t)p + bytes <= a->first + a->second.size ? &a->second : nullptr;
}

bool device_memory_contains(const void *p, size_t bytes) {
    return allocation_of(p, bytes) != nullptr;
}

} // namespace simt

using namespace simt;

namespace {

enum { PAGE = 4096, ALIGNMENT = 256, POISON = 0xff };

// Memory ends at a page that faults; up to there, and inside, it is poisoned.
size_t padded(size_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}
size_t mapped(size_t size) {
    return (padded(size) + PAGE - 1) / PAGE * PAGE + PAGE;
}

cudaError_t allocate(void **out, size_t size, bool is_device) {
    if (!out) return report(cudaErrorInvalidValue);
    *out = nullptr;
    const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureUnsupported);
    if (code != cudaSuccess) return report(code);
    if (size == 0) return cudaSuccess;
    if (counts_down(&d.fail_allocation) || (is_device && size > d.memory - d.used_device))
        return report(cudaErrorMemoryAllocation);
    void *map = mmap(nullptr, mapped(size), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return report(cudaErrorMemoryAllocation);
    uint8_t *end = (uint8_t *)map + mapped(size) - PAGE;
    mprotect(end, PAGE, PROT_NONE);
    *out = end - padded(size);
    memset(*out, POISON, padded(size));
    d.allocations[(uintptr_t)*out] = {size, is_device};
    (is_device ? d.used_device : d.used_pinned) += size;
    return cudaSuccess;
}

cudaError_t release(void *p, bool is_device) {
    if (!p) return cudaSuccess;
    const auto found = d.allocations.find((uintptr_t)p);
    if (found == d.allocations.end() || found->second.is_device != is_device)
        return report(cudaErrorInvalidValue);
    const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureUnsupported);
    if (code != cudaSuccess) return report(code);
    drain_all();
    const size_t size = found->second.size;
    for (size_t i = size; i < padded(size); i++)
        if (((uint8_t *)p)[i] != POISON)
            simt::stop("an allocation of %zu bytes at %p was written behind its end", size, p);
    (is_device ? d.used_device : d.used_pinned) -= size;
    munmap((uint8_t *)p + padded(size) + PAGE - mapped(size), mapped(size));
    d.allocations.erase(found);
    return cudaSuccess;
}

// Copies: `height` rows.
struct rectangle {
    size_t width, height, to_pitch, from_pitch;
};

size_t span(const rectangle &r, size_t pitch) {
    return r.height ? (r.height - 1) * pitch + r.width : 0;
}

void copy_rows(void *to, const void *from, const rectangle &r) {
    for (size_t i = 0; i < r.height; i++)
        memmove((uint8_t *)to + i * r.to_pitch, (const uint8_t *)from + i * r.from_pitch, r.width);
}

bool is_place(const void *p, size_t bytes, bool wants_device, bool any) {
    const allocation *a = allocation_of(p, bytes);
    if (!a && allocation_of(p, 1)) return false; // begins in an allocation and leaves it
    return any || (a && a->is_device) == wants_device;
}

cudaError_t copy(void *to, const void *from, const rectangle &r, cudaMemcpyKind kind, cudaStream_t stream,
                 bool wait) {
    if (r.width == 0 || r.height == 0) return cudaSuccess;
    if (r.height > 1 && (r.width > r.to_pitch || r.width > r.from_pitch))
        return report(cudaErrorInvalidValue);
    const bool any = kind == cudaMemcpyDefault;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!is_place(to, span(r, r.to_pitch), to_device, any) ||
        !is_place(from, span(r, r.from_pitch), from_device, any))
        return report(cudaErrorInvalidValue);
    const bool to_pageable = !allocation_of(to, 1), from_pageable = !allocation_of(from, 1);
    const bool captured = stream && stream->capture;
    if (wait) {
        const cudaError_t code = forbid_in_capture(cudaErrorStreamCaptureImplicit);
        if (code != cudaSuccess) return report(code);
    }
    operation what = {[=] { copy_rows(to, from, r); }, nullptr};
    if (from_pageable && !captured && !wait) {
        const auto *first = (const uint8_t *)from;
        const auto staged = std::make_shared<std::vector<uint8_t>>(first, first + span(r, r.from_pitch));
        what.action = [=] { copy_rows(to, staged->data(), r); };
    }
    const cudaError_t code = enqueue(stream, std::move(what));
    if (code == cudaSuccess && !captured && (wait || to_pageable)) drain(stream ? stream : &d.default_stream);
    return code;
}

} // namespace

cudaError_t cudaMalloc(void **p, size_t size) {
    const guard g;
    return allocate(p, size, true);
}

cudaError_t cudaMallocHost(void **p, size_t size) {
    const guard g;
    return allocate(p, size, false);
}

cudaError_t cudaHostAlloc(void **p, size_t size, unsigned) {
    return cudaMallocHost(p, size);
}

cudaError_t cudaFree(void *p) {
    const guard g;
    return release(p, true);
}

cudaError_t cudaFreeHost(void *p) {
    const guard g;
    return release(p, false);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    const guard g;
    return copy(to, from, {n, 1, n, n}, kind, nullptr, true);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    const guard g;
    return copy(to, from, {n, 1, n, n}, kind, stream, false);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                         size_t height, cudaMemcpyKind kind) {
    const guard g;
    return copy(to, from, {width, height, to_pitch, from_pitch}, kind, nullptr, true);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    const guard g;
    return copy(to, from, {width, height, to_pitch, from_pitch}, kind, stream, false);
}

cudaError_t cudaMemset(void *p, int value, size_t n) {
    return cudaMemsetAsync(p, value, n, nullptr);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    const guard g;
    if (n == 0) return cudaSuccess;
    if (!allocation_of(p, n)) return report(cudaErrorInvalidValue);
    return enqueue(stream, {[=] { memset(p, value, n); }, nullptr});
}
