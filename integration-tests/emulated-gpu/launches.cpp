// Modules, functions and launches. A function is the kernel of that name compiled for the host, with which this library
// was built; of candle's there are the few that are called.
#include <cstring>
#include <dlfcn.h>
#include <memory>

#include "candle.h"
#include "device.h"
#include "emulation.h"

using namespace gpu;

constexpr size_t USUAL_SHARED = 48 << 10, MOST_SHARED = 227 << 10;

struct Function {
    std::string name;
    const emulation::Declared *declared;
    const CandleKernel *of_candle;
    size_t shared_bytes = USUAL_SHARED;
};

struct Module {
    std::vector<std::unique_ptr<Function>> functions;
};

CUDA int cuModuleLoadData(void **module, const void *image) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    if (int error = check_no_capture("cuModuleLoadData")) return error;
    constexpr uint32_t FATBIN = 0xba55ed50;
    uint32_t begins_with;
    memcpy(&begins_with, image, sizeof begins_with);
    // PTX is text.
    if (begins_with != FATBIN && strncmp((const char *)image, "//", 2) != 0) return INVALID_IMAGE;
    *module = new Module;
    return SUCCESS;
}

CUDA int cuModuleUnload(void *module) {
    Alone alone;
    const int error = finish();
    delete (Module *)module;
    return error;
}

CUDA int cuModuleGetFunction(void **found, void *module, const char *name) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    auto function = std::make_unique<Function>();
    function->name = name;
    function->of_candle = candle_kernel(name);
    function->declared = nullptr;
    constexpr const char *OURS = "lockstep_";
    if (strncmp(name, OURS, strlen(OURS)) == 0) {
        const std::string symbol = std::string("declared_") + (name + strlen(OURS));
        function->declared = (const emulation::Declared *)dlsym(dlopen("libcuda.so.1", RTLD_NOW), symbol.c_str());
    }
    if (!function->declared && !function->of_candle) {
        report("there is no kernel %s", name);
        return NOT_FOUND;
    }
    *found = function.get();
    ((Module *)module)->functions.push_back(std::move(function));
    return SUCCESS;
}

CUDA int cuFuncSetAttribute(void *function, int attribute, int value) {
    if (attribute != FUNCTION_MAX_DYNAMIC_SHARED_SIZE || value < 0 || (size_t)value > MOST_SHARED) return INVALID_VALUE;
    ((Function *)function)->shared_bytes = (size_t)value;
    return SUCCESS;
}

// Whether a device would take so many threads and so much memory.
static int check_size(const Function &function, const uint32_t *grid, uint32_t threads, size_t shared_bytes) {
    constexpr uint32_t MOST_BLOCKS = 65535;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || threads == 0) return INVALID_VALUE;
    if (grid[0] > INT32_MAX || grid[1] > MOST_BLOCKS || grid[2] > MOST_BLOCKS) return INVALID_VALUE;
    if (shared_bytes > function.shared_bytes) return INVALID_VALUE;
    if (threads > 1024) return INVALID_VALUE;
    if (function.declared && threads > function.declared->most_threads) return LAUNCH_OUT_OF_RESOURCES;
    return SUCCESS;
}

// All of a structure's words that may be addresses are looked at. Addresses come first in ours, and the last word may end
// in bytes that are no field's.
static bool check_parameters(const Function &function, const std::vector<uint64_t> &words) {
    const size_t count = function.of_candle ? words.size() : words.size() - 1;
    for (size_t at = 0; at < count; at++)
        if (!check_parameter(function.name, 8 * at, words[at])) return false;
    return true;
}

static std::vector<uint64_t> parameters_of(const Function &function, void **parameters) {
    if (function.of_candle) return function.of_candle->read(parameters);
    std::vector<uint64_t> words((function.declared->parameter_bytes + 7) / 8, 0);
    memcpy(words.data(), parameters[0], function.declared->parameter_bytes);
    return words;
}

CUDA int cuLaunchKernel(void *handle, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                        unsigned threads_z, unsigned shared_bytes, void *stream, void **parameters, void **) {
    Alone alone;
    if (failure() != SUCCESS) return failure();
    if (current_device() < 0) return INVALID_CONTEXT;
    const Function *function = (const Function *)handle;
    const std::vector<uint32_t> grid = {x, y, z};
    if (threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (int error = check_size(*function, grid.data(), threads, shared_bytes)) {
        report("%s cannot be launched with %u x %u x %u blocks of %u threads and %u bytes", function->name.c_str(), x, y, z,
               threads, shared_bytes);
        return error;
    }
    // Copied: the caller's structure is gone when it runs, or runs again.
    std::vector<uint64_t> words = parameters_of(*function, parameters);
    auto run = [function, grid, threads, shared_bytes, words = std::move(words)] {
        if (!check_parameters(*function, words)) return;
        if (function->of_candle) function->of_candle->run(words.data());
        else function->declared->run(words.data(), grid.data(), threads, shared_bytes);
    };
    return submit(stream_of(stream), {function->name, std::move(run)});
}
