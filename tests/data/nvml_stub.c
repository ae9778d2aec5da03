/* A small libnvidia-ml.so.1 for tests: cards as they are set, any call can fail with any code or hang. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MIB (1ULL << 20)
#define MOST 16

static struct { char function[64]; int device, code, sleep_ms; } faults[MOST];
static volatile int n_faults;
static int n_devices = 1, mig_instances = -1, n_processes, inits;
static unsigned long long total_mib = 24576, free_mib = 20000;
static int compute_major = 8, compute_minor = 6;
static char device_name[64] = "Stub RTX";

void stub_reset(void) { n_faults = 0; n_devices = 1; mig_instances = -1; n_processes = 0; inits = 0; total_mib = 24576; free_mib = 20000; compute_major = 8; compute_minor = 6; strcpy(device_name, "Stub RTX"); }
void stub_fault(const char *function, int device, int code, int sleep_ms) {
    snprintf(faults[n_faults].function, 64, "%s", function);
    faults[n_faults].device = device; faults[n_faults].code = code; faults[n_faults++].sleep_ms = sleep_ms;
}
void stub_cards(int devices, int mig, int processes) { n_devices = devices; mig_instances = mig; n_processes = processes; }
void stub_chip(const char *name, int major, int minor) { snprintf(device_name, 64, "%s", name); compute_major = major; compute_minor = minor; }
void stub_total(unsigned long long mib) { total_mib = mib; }
void stub_free(unsigned long long mib) { free_mib = mib; }
int stub_inits(void) { return inits; }

static int fault(const char *function, int device) {
    for (int i = 0; i < n_faults; i++)
        if (!strcmp(faults[i].function, function) && (faults[i].device < 0 || faults[i].device == device)) {
            int code = faults[i].code;
            for (int ms = 0; ms < faults[i].sleep_ms && n_faults; ms++) usleep(1000);  /* stub_reset ends a hang */
            return code;
        }
    return 0;
}
#define FAULT(device) do { int code = fault(__func__, device); if (code) return code; } while (0)

/* A handle is 1 + the number of the device, plus 100 per MIG instance. */
static int number(void *handle) { return (int)((long)handle % 100) - 1; }
static int instance(void *handle) { return (int)((long)handle / 100); }

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory2_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;

int nvmlInitWithFlags(unsigned flags) { FAULT(-1); inits++; return 0; }
int nvmlShutdown(void) { FAULT(-1); return 0; }
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, 32, "stub error %d", code); return text; }
int nvmlDeviceGetCount_v2(unsigned *count) { FAULT(-1); *count = n_devices; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { FAULT((int)index); *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    FAULT(number(handle));
    if (mig_instances < 0) return 3;
    *current = *pending = 1;
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { FAULT(number(handle)); *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance_handle) {
    FAULT(number(handle));
    if ((int)index >= mig_instances) return 6;
    *instance_handle = (void *)((long)handle + 100 * (index + 1));
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    FAULT(number(handle));
    memory->total = total_mib * MIB; memory->free = free_mib * MIB; memory->used = memory->total - memory->free;
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory2_t *memory) {
    FAULT(number(handle));
    if (memory->version != (sizeof(memory2_t) | 2 << 24)) return 25;
    memory->total = total_mib * MIB / (instance(handle) ? 4 : 1); memory->reserved = 300 * MIB; memory->free = free_mib * MIB / (instance(handle) ? 4 : 1);
    memory->used = memory->total - memory->free - memory->reserved;
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    FAULT(number(handle));
    snprintf(uuid, size, instance(handle) ? "MIG-%d-%d" : "GPU-%d", number(handle), instance(handle));
    return 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned size) { FAULT(number(handle)); snprintf(name, size, "%s", device_name); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) { FAULT(number(handle)); *major = compute_major; *minor = compute_minor; return 0; }
int nvmlDeviceGetNumGpuCores(void *handle, unsigned *cores) { FAULT(number(handle)); *cores = 10496; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *processes) {
    FAULT(number(handle));
    if (n_processes && (!processes || *count < (unsigned)n_processes)) { *count = n_processes; return 7; }
    for (int i = 0; i < n_processes; i++) processes[i] = (process_t){100 + i, i ? ~0ULL : 512 * MIB, ~0u, ~0u};
    *count = n_processes;
    return 0;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process_t *processes) { FAULT(number(handle)); *count = 0; return 0; }
int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned size) { FAULT(-1); if (pid != 100) return 6; snprintf(name, size, "python3"); return 0; }
