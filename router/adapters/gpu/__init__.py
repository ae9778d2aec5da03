"""Probes of free memory: NVML, a command, Prometheus text, AMD sysfs, static."""
